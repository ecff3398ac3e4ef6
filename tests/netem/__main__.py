"""`./run netem [-k CASE]`: here if this kernel can shape links, else in user-mode Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.netem import ground, guest

ROOT = Path(__file__).parents[2]
CASES = ("steady", "changing", "userspace")
TIMEOUT = 1200.0
"""Seconds that all cases may take in the guest: many times what they need."""


def main(arguments: list[str]) -> int:
    """Run pytest on the cases; its exit status. Without a ground it skips and says why."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    # By name: these are no test_*.py, so that a plain `pytest` leaves them alone.
    command += [f"tests/netem/{each}.py" for each in CASES]
    command += arguments
    why_not = ground.native()
    if why_not is None:
        print("netem: in network namespaces of this kernel", flush=True)
    elif (lacking := ground.user_mode()) is None:
        print(f"netem: {why_not}; booting user-mode Linux", flush=True)
        return guest.run(command, ROOT, TIMEOUT)
    else:
        print(f"netem: SKIPPED. Here: {why_not}. User-mode Linux: {lacking}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
