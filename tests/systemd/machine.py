"""A Debian machine made of a folder, booted by user-mode Linux with systemd as its first process.

Needs root, but neither KVM nor a container.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import debian
from tests.netem.guest import prefer

CACHE = debian.REPOSITORY / ".cache" / "systemd"
PACKAGES = "systemd,systemd-sysv,python3,python3-venv"
EXTRAS = ("device", "device-onnx", "device-text", "camera", "server")
NEEDED = {"linux.uml": "user-mode-linux", "debootstrap": "debootstrap", "unshare": "util-linux"}


def missing() -> str | None:
    """Why there can be no machine here, None if there can."""
    if os.uname().machine != "x86_64":
        return "user-mode Linux needs an x86-64 machine"
    return debian.lacking(NEEDED)


class Machine:
    """One run's copy of a bare Debian, at `root`."""

    def __init__(self, name: str) -> None:
        self.root = CACHE / name
        self.log = CACHE / f"{name}.console"
        if self.root.exists():
            shutil.rmtree(self.root)
        base = debian.bootstrap(CACHE / f"base-{_digest(PACKAGES)}", f"--include={PACKAGES}")
        debian.run(["cp", "-a", str(base), str(self.root)])

    def chroot(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run `command` in the machine while it is off."""
        return debian.enter(self.root, command, mnt=_wheels())

    def boot(self, seconds: float, memory: str = "2G") -> int:
        """Boot, and wait until the machine powers off; its console is in `log`.

        Raises subprocess.TimeoutExpired after `seconds`; the machine is off then, too.
        """
        command = ["linux.uml", "rootfstype=hostfs", f"rootflags={self.root}", "rw", "quiet"]
        command += [f"mem={memory}", "init=/lib/systemd/systemd", "systemd.show_status=no"]
        command += ["con=null", "con0=fd:0,fd:1", f"umid=offboard-{os.getpid()}"]
        with self.log.open("wb") as console:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its helper processes go with it
            )
            prefer(process.pid)
            try:
                return process.wait(seconds)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()

    def remove(self) -> None:
        """The run's copy is no longer needed."""
        shutil.rmtree(self.root)


def _wheels() -> Path:
    """The wheels that an installation in the machine takes, fetched on first use and kept."""
    wanted = [*debian.requirements(*EXTRAS), "setuptools>=77"]
    pins = (debian.REPOSITORY / "constraints.txt").read_text()
    folder = CACHE / f"wheels-{_digest(pins, *wanted)}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        debian.download(partial, wanted, "x86_64")
        for old in CACHE.glob("wheels-*"):
            if old != partial:
                shutil.rmtree(old)
        partial.rename(folder)
    return folder


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
