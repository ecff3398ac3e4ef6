"""Installs both services into a machine, boots it twice, and reads what was seen there.

Collected by `./run systemd` only: it needs root and some packages, and takes minutes. What cannot
run here is skipped, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common import profile as profiles
from tests.debian import copy_repository, run
from tests.profiles import picture, tiny
from tests.systemd.guest import CHECKS, WATCHDOG
from tests.systemd.machine import CACHE, Machine, missing

SECONDS = 1200.0
"""Both boots together; each check in the guest has a bound of its own."""
UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type={type}
{extra}
WorkingDirectory=/srv/offboard
ExecStart=/usr/bin/python3 -m tests.systemd.guest {argument}
StandardOutput=append:/srv/probe/{name}.log
StandardError=inherit
[Install]
WantedBy=multi-user.target
"""
DEVICE = """
[device]
server = "127.0.0.1:7070"
token = "{token}"
source = "-"
live = true
strategy = "amot"
deadline = 8000.0
json = true
"""
# Where a running Debian itself writes.
NOT_OURS = (
    *("dev", "proc", "run", "srv", "sys", "tmp", "mnt", "var/log", "var/tmp", "home", "root"),
    *("etc/machine-id", "etc/.pwd.lock", "etc/.updated", "var/.updated", "var/lib/systemd"),
    *("var/lib/private", "var/cache/private", "var/cache/ldconfig"),
)

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def tree(root: Path) -> dict[str, str]:
    """Every path of the machine that installing may touch: mode, owner, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.startswith(NOT_OURS) or "__pycache__" in name:
            continue
        status = path.lstat()
        content = "folder"
        if path.is_symlink():
            content = f"link to {path.readlink()}"
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"
    return found


def installed(machine: Machine, *arguments: str) -> str:
    done = machine.chroot(["/srv/offboard/run", "install", *arguments])
    assert done.returncode == 0, done.stdout
    return done.stdout


class Seen:
    """What one run showed."""

    def __init__(self) -> None:
        self.refusals: dict[str, tuple[int, str]] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.before: dict[str, str] = {}
        self.after: dict[str, str] = {}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    seen = Seen()
    machine = Machine("machine")
    copy_repository(machine.root / "srv/offboard")
    for secret in ("home/somebody/secret", "root/secret"):
        (machine.root / secret).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / secret).write_text("secret")
        (machine.root / secret).chmod(0o644)
    (machine.root / "root").chmod(0o755)  # so that the sandbox alone stands in the way
    # Files on hostfs belong to root whoever made them; what the services write needs owners.
    folders = (("/var/lib/private", 700), ("/var/cache/private", 700), ("/tmp", 1777))
    table = "".join(f"tmpfs {folder} tmpfs mode={mode} 0 0\n" for folder, mode in folders)
    (machine.root / "etc/fstab").write_text(table)
    (machine.root / "var/cache/private").mkdir(mode=0o700, exist_ok=True)
    seen.before = tree(machine.root)

    print(installed(machine, "server"))
    print(installed(machine, "device", "--extra", "text"))
    _settle(machine, tmp_path_factory.mktemp("profile"), seen)
    _probe(machine)
    probe = machine.root / "srv/probe"
    try:
        machine.boot(SECONDS)
    finally:
        for log in (*probe.glob("*.log"), *probe.glob("journal-*")):
            shutil.copy(log, CACHE / log.name)
    for line in (probe / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        seen.rows[row["check"]] = row
    print(installed(machine, "server", "--uninstall"))
    seen.after = tree(machine.root)
    yield seen
    machine.remove()


def _settle(machine: Machine, scratch: Path, seen: Seen) -> None:
    """Settings for this machine; on the way, settings that must be refused."""
    root = machine.root
    profile = tiny(scratch)
    shutil.copytree(profile, root / "srv/tiny")
    run(["chmod", "-R", "a+rX", str(root / "srv/tiny")])
    frames = root / "srv/probe/frames"
    frames.mkdir(parents=True)
    for seed in range(3):
        Image.fromarray(picture(profiles.load(profile), seed)).save(frames / f"{seed}.jpg")
    folder = root / "etc/offboard"
    server = (folder / "server.toml").read_text()
    assert 'profile = "signs"' in server
    (folder / "server.toml").write_text(server.replace("signs", "nothing-of-that-name"))
    seen.refusals["server"] = _refused(machine, "server")
    (folder / "server.toml").write_text(server.replace('"signs"', '"/srv/tiny"'))
    token = next(line.split('"')[1] for line in server.splitlines() if line.startswith("token"))
    device = DEVICE.format(token=token)
    (folder / "device.toml").write_text(device.replace("8000.0", '"soon"'))
    seen.refusals["device"] = _refused(machine, "device")
    (folder / "device.toml").write_text(device)
    installed(machine, "server")
    installed(machine, "device")
    # An extra asked for once outlives an upgrade.
    said = machine.chroot(["/opt/offboard/device/venv/bin/python", "-c", "import tokenizers"])
    assert said.returncode == 0, said.stdout


def _refused(machine: Machine, role: str) -> tuple[int, str]:
    done = machine.chroot(["/srv/offboard/run", "install", role])
    return done.returncode, done.stdout


def _probe(machine: Machine) -> None:
    """The checks and the camera, as services of the machine."""
    units = machine.root / "etc/systemd/system"
    (units / "probe.service").write_text(
        UNIT.format(type="oneshot", extra="TimeoutStartSec=infinity", argument="", name="probe")
    )
    (units / "camera.service").write_text(
        UNIT.format(
            type="exec",
            extra="ExecStartPre=/usr/bin/mkfifo -m 644 /run/camera.mjpeg",
            argument="camera",
            name="camera",
        ).replace("After=multi-user.target\n", "")
    )
    wants = units / "multi-user.target.wants"
    for name in ("probe", "camera"):
        (wants / f"{name}.service").symlink_to(f"../{name}.service")
    watchdog = f"[Service]\nWatchdogSec={WATCHDOG}\n"
    camera = "StandardInput=file:/run/camera.mjpeg\n[Unit]\nAfter=camera.service\n"
    for role, text in (("server", watchdog), ("device", watchdog + camera)):
        drop = units / f"offboard-{role}.service.d"
        drop.mkdir(exist_ok=True)
        (drop / "here.conf").write_text(text)


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_machine(check: str, seen: Seen) -> None:
    row = seen.rows.get(check)
    assert row is not None, "the machine did not come to it; see .cache/systemd"
    assert row["ok"], row["detail"]
    print(f"\n{check}: {row['detail']} ({row['seconds']} s)")


@pytest.mark.parametrize(
    ("role", "said"), [("server", "nothing-of-that-name"), ("device", "deadline")]
)
def test_bad_settings_are_refused_before_anything_starts(role: str, said: str, seen: Seen) -> None:
    status, text = seen.refusals[role]
    assert status == 2, text
    assert said in text
    assert f"offboard-{role} is not started" in text


def test_uninstalling_leaves_nothing_behind(seen: Seen) -> None:
    ours = {"etc/systemd/system/" + name for name in ("probe.service", "camera.service")}
    ours |= {"etc/systemd/system/multi-user.target.wants/" + Path(name).name for name in ours}
    after = {name: what for name, what in seen.after.items() if name not in ours}
    assert after == seen.before
