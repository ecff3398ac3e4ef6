#!/bin/sh
# Installs the device or the server as a systemd service, or takes it away again.
#
# What it makes, and --uninstall removes:
#   PREFIX/ROLE/{app,venv}                     code and Python packages
#   /etc/offboard/ROLE.toml                    settings with the token: 0600, kept on upgrade
#   /etc/systemd/system/offboard-ROLE.service  (and offboard-device@.service, for more sources)
#   /var/{lib,cache}/offboard-ROLE             made by systemd when the service runs
set -eu

usage() {
    cat <<'TEXT'
usage: ./run install device|server [--prefix /opt/offboard] [--extra text] [--uninstall]

Installs into PREFIX/device or PREFIX/server, writes /etc/offboard/*.toml if it is not there,
checks it, and starts the service. Run it again to upgrade, or after editing the settings.
--extra text: what a device needs for sentences; --extra tflite: for .tflite models. They stay.
TEXT
}

say() { echo "install: $*"; }
fail() {
    echo "install: $*" >&2
    exit 2
}

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
CONFIG=/etc/offboard
UNITS=/etc/systemd/system
MARK=.offboard

role= prefix=/opt/offboard extra= uninstall=
while [ $# -gt 0 ]; do
    case $1 in
    device | server) role=$1 ;;
    --prefix)
        [ $# -gt 1 ] || fail "--prefix needs a directory"
        prefix=$2
        shift
        ;;
    --prefix=*) prefix=${1#--prefix=} ;;
    --extra)
        [ $# -gt 1 ] || fail "--extra needs a name: text or tflite"
        extra="$extra $2"
        shift
        ;;
    --extra=*) extra="$extra ${1#--extra=}" ;;
    --uninstall) uninstall=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        fail "what is '$1'?"
        ;;
    esac
    shift
done
[ -n "$role" ] || {
    usage >&2
    fail "device or server?"
}
for each in $extra; do
    case $role/$each in
    device/text | device/tflite) ;;
    *) fail "--extra $each: a device takes text or tflite, a server nothing" ;;
    esac
done
case $prefix in
*[!A-Za-z0-9/._-]* | *..*) fail "--prefix $prefix: only letters, digits and / . _ - please" ;;
/home* | /root* | /run* | /tmp* | /var/tmp*)
    fail "--prefix $prefix: the service's sandbox cannot see it; choose one such as /opt/offboard"
    ;;
/?*) prefix=${prefix%/} ;;
*) fail "--prefix $prefix is not an absolute path" ;;
esac
home=$prefix/$role

[ "$(id -u)" = 0 ] || fail "only root may do this: sudo ./run install ..."
command -v systemctl >/dev/null || fail "there is no systemd here; start the programs yourself:" \
    "./run $role --help"
systemd=$(systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p')
[ "${systemd:-0}" -ge 250 ] || fail "systemd ${systemd:-?} is too old: 250 is needed"

# A chroot or an image under construction has systemd's files, but not systemd.
running() { [ -d /run/systemd/system ]; }
reload() { if running; then systemctl daemon-reload; fi; }

instances() { # The device's template, as far as it is in use.
    [ "$role" = device ] || return 0
    find "$UNITS" -name 'offboard-device@?*.service' -path '*.wants/*' -exec basename {} \;
}

if [ -n "$uninstall" ]; then
    if [ ! -e "$home/$MARK" ] && [ ! -e "$UNITS/offboard-$role.service" ]; then
        fail "no $role is installed under $prefix"
    fi
    for unit in "offboard-$role.service" $(instances); do
        say "stopping and disabling $unit"
        if running; then
            systemctl disable --quiet --now "$unit"
            systemctl reset-failed "$unit" 2>/dev/null || true
        else
            systemctl disable --quiet "$unit"
        fi
    done
    for path in "$UNITS/offboard-$role.service" "$UNITS/offboard-$role.service.d" \
        "$UNITS/offboard-$role@.service" "$UNITS/offboard-$role@"*.service.d \
        "$CONFIG/$role.toml" "$CONFIG/$role-"*.toml \
        "/var/lib/offboard-$role" "/var/lib/offboard-$role-"* \
        "/var/cache/offboard-$role" "/var/cache/offboard-$role-"* \
        "/var/lib/private/offboard-$role" "/var/lib/private/offboard-$role-"* \
        "/var/cache/private/offboard-$role" "/var/cache/private/offboard-$role-"*; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            rm -rf "$path"
            say "removed $path"
        fi
    done
    if [ -e "$home/$MARK" ]; then
        rm -rf "$home"
        say "removed $home"
    fi
    # Only if nothing else is in them: the other role, or another service's private files.
    for path in "$prefix" "$CONFIG" /var/cache/private /var/lib/private; do
        rmdir "$path" 2>/dev/null || true
    done
    reload
    say "offboard-$role is gone"
    exit 0
fi

# A Python inside somebody's home would be hidden from the service.
where='import sys; print(sys.base_prefix if sys.version_info >= (3, 11) else "")'
python=
for candidate in /usr/bin/python3 /usr/local/bin/python3 python3; do
    base=$("$candidate" -c "$where" 2>/dev/null) || continue
    case $base in
    '' | /home/* | /root/*) continue ;;
    esac
    python=$candidate
    break
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed, installed for the whole system"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "venv is missing: apt-get install python3-venv"
[ -d "$(dirname "$prefix")" ] || fail "--prefix $prefix: $(dirname "$prefix") does not exist"
if [ -e "$home" ] && [ ! -e "$home/$MARK" ]; then
    fail "$home exists and is not ours; choose another --prefix"
fi

case $role in
device) extras=device,device-onnx,camera parts='common device' ;;
server) extras=server parts='common server' ;;
esac
# What was asked for once is kept on upgrade: the mark's first line says what is installed.
had=$(head -n 1 "$home/$MARK" 2>/dev/null) || had=
for each in text tflite; do
    case " $extra ,$had," in
    *" $each "* | *",device-$each,"*) extras=$extras,device-$each ;;
    esac
done

umask 022
mkdir -p "$home"
touch "$home/$MARK"
rm -rf "$home/app"
mkdir -p "$home/app/docs"
for part in $parts setup.cfg pyproject.toml constraints.txt LICENSE README.md; do
    cp -R "$SOURCE/$part" "$home/app/"
done
cp "$SOURCE/docs/deployment.md" "$home/app/docs/"
if [ "$role" = server ]; then
    for manifest in "$SOURCE"/profiles/*/profile.json; do
        [ -e "$manifest" ] || continue
        mkdir -p "$home/app/profiles"
        cp -R "$(dirname "$manifest")" "$home/app/profiles/"
    done
fi
find "$home/app" -name __pycache__ -prune -exec rm -rf {} +
chmod -R a+rX "$home/app" # the service is nobody in particular
say "code in $home/app"

needs=$(echo "$extras" && "$python" --version && cat "$home"/app/*.cfg "$home"/app/*.toml "$home"/app/*.txt | cksum)
if [ "$(cat "$home/$MARK")" != "$needs" ]; then
    "$python" -m venv "$home/venv"
    # Wheels only: a board has no compiler, and a server needs none.
    "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-warn-script-location --only-binary :all: \
        --constraint "$home/app/constraints.txt" --editable "$home/app[$extras]" ||
        fail "the packages could not be installed; run this again when that is mended"
    echo "$needs" >"$home/$MARK"
    say "packages of offboard[$extras] in $home/venv ($("$python" --version))"
else
    say "packages in $home/venv are those needed"
fi
"$home/venv/bin/python" -m compileall -q "$home/app" # the service itself may not write there

fresh=
if [ ! -e "$CONFIG/$role.toml" ]; then
    fresh=yes
    mkdir -p "$CONFIG"
    token=$("$python" -c 'import secrets; print(secrets.token_urlsafe(24))')
    accelerator=cpu
    [ ! -e /dev/nvidiactl ] || accelerator=cuda
    (
        umask 077
        sed -e "s|@TOKEN@|$token|; s|@DEVICE@|$accelerator|" "$SOURCE/deploy/$role.toml" \
            >"$CONFIG/$role.toml"
    )
    say "settings in $CONFIG/$role.toml"
else
    say "settings kept: $CONFIG/$role.toml"
fi

for unit in "$SOURCE/deploy/systemd/offboard-$role"*.service; do
    name=$(basename "$unit")
    sed "s|/opt/offboard/|$prefix/|g" "$unit" >"$UNITS/$name"
    say "unit $UNITS/$name"
    # Growing pauses between restarts came with systemd 254; before, the pause is constant.
    if [ "$systemd" -ge 254 ]; then
        mkdir -p "$UNITS/$name.d"
        cp "$SOURCE/deploy/systemd/backoff.conf" "$UNITS/$name.d/"
        say "pauses between restarts: $UNITS/$name.d/backoff.conf"
    fi
done
reload

if ! "$home/venv/bin/python" "$SOURCE/deploy/check.py" "$role" "$CONFIG/$role.toml"; then
    if [ -n "$fresh" ]; then
        say "not started yet: edit $CONFIG/$role.toml, then run this again"
        exit 0
    fi
    fail "offboard-$role is not started with these settings: mend them, then run this again"
fi
systemctl enable --quiet "offboard-$role.service"
if running; then
    systemctl restart "offboard-$role.service" $(instances)
    say "offboard-$role is running; its journal: journalctl -u offboard-$role -f"
else
    say "systemd does not run here: offboard-$role starts at the next boot"
fi
