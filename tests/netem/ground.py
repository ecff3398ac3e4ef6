"""Where links can be shaped: this kernel, or user-mode Linux. Says what is missing for either."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

MODULES = Path("/usr/lib/uml/modules")
PACKAGES = {
    "linux.uml": "user-mode-linux",
    "insmod": "kmod",
    "ip": "iproute2",
    "tc": "iproute2",
}
"""Program -> the Debian package it comes from."""
PROBE = """
ip netns add offboard-probe &&
ip netns exec offboard-probe tc qdisc add dev lo root netem delay 1ms rate 1mbit
status=$?
ip netns del offboard-probe
exit $status
"""


def native() -> str | None:
    """None if links can be shaped right here; otherwise why not."""
    if os.geteuid() != 0:
        return "not root"
    if lacking := missing("ip", "tc"):
        return f"not installed: {' '.join(lacking)}"
    probe = subprocess.run(["sh", "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        return None
    said = probe.stderr.strip().splitlines()
    return f"this kernel has no netem ({said[0] if said else 'no reason given'})"


def emulated() -> bool:
    """Whether this is a guest of user-mode Linux, where switching between processes is slow."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def user_mode() -> str | None:
    """None if user-mode Linux can be booted; otherwise why not."""
    if lacking := missing(*PACKAGES):
        return f"not installed: {' '.join(lacking)} (apt-get install {' '.join(lacking)})"
    return None if MODULES.is_dir() else f"there is no {MODULES}"


def missing(*programs: str) -> list[str]:
    """The packages of those `programs` that are not here."""
    return sorted({PACKAGES[each] for each in programs if shutil.which(each, path=_path()) is None})


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"))
