"""Debian systems in a folder, for the tests that need a whole one: bootstrapped, filled, entered.

Mounts live in a namespace of their own and go with the command that needed them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
# pip does not derive the older tags from the newest. Bookworm's glibc is 2.36.
TAGS = [*(f"manylinux_2_{minor}" for minor in (36, 34, 31, 28, 27, 17)), "manylinux2014", "linux"]


def lacking(tools: Mapping[str, str]) -> str | None:
    """What to install for `tools` (program -> package), or that root is needed; None if all is."""
    packages = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if packages:
        return f"missing: apt-get install {' '.join(packages)}"
    return None if os.geteuid() == 0 else "debootstrap and chroot need root"


def bootstrap(root: Path, *options: str) -> Path:
    """A bare Debian in `root`, made on first use and kept."""
    if not root.exists():
        partial = root.with_name(root.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        run(["debootstrap", "--variant=minbase", *options, SUITE, str(partial)])
        shutil.rmtree(partial / "var/cache/apt/archives")
        partial.rename(root)
    return root


def requirements(*extras: str) -> list[str]:
    """What the distribution's extras ask for."""
    config = ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lists = config["options.extras_require"]
    return sorted({line for name in extras for line in lists[name].split("\n") if line})


def wheels(wanted: Sequence[str], machine: str, python: str) -> list[str]:
    """The file names of the wheels that another machine's pip would take, by the index alone.

    Raises RuntimeError if one of them is not there as a wheel.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"]
    command += ["--ignore-installed", "--target", "/nonexistent"]
    report = json.loads(run([*command, *_foreign(machine, python), *wanted]))
    urls = [each["download_info"]["url"] for each in report["install"]]
    return sorted(url.rsplit("/", 1)[1] for url in urls)


def download(folder: Path, wanted: Sequence[str], machine: str, python: str = "3.11") -> None:
    """Those wheels, in `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    run([*command, *_foreign(machine, python), *wanted])


def _foreign(machine: str, python: str) -> list[str]:
    options = ["--disable-pip-version-check", "--only-binary", ":all:"]
    options += ["--constraint", str(REPOSITORY / "constraints.txt")]
    options += ["--implementation", "cp", "--python-version", python]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in TAGS:
        options += ["--platform", f"{tag}_{machine}"]
    return options


def copy_repository(folder: Path) -> None:
    """The files that git knows, or would, in `folder`."""
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "-co", "--exclude-standard"]
    for name in filter(None, run(listing).split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)


def enter(
    root: Path,
    command: Sequence[str],
    *,
    mnt: Path,
    environ: Mapping[str, str] | None = None,
    seconds: float = 900.0,
) -> subprocess.CompletedProcess[str]:
    """Run `command` in the system at `root`, with `mnt` at /mnt, where pip finds its wheels.

    The network is the host's. Standard error comes with standard output.
    """
    script = (
        'mount --bind "$1" "$2/mnt"; mount -t proc proc "$2/proc"; '
        'root=$2; shift 2; exec chroot "$root" "$@"'
    )
    inside = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/mnt",
        "PIP_ROOT_USER_ACTION": "ignore",
        **(environ or {}),
    }
    return subprocess.run(
        [*("unshare", "--mount", "sh", "-ec", script, "sh"), str(mnt), str(root), *command],
        env=inside,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def run(command: Sequence[str]) -> str:
    """What `command` printed; RuntimeError with what it complained of if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(command[:4])
        raise RuntimeError(f"{words} ... failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
