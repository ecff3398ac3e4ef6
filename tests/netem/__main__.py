"""`./run netem [-k CASE]`: here if this kernel can shape links, else in user-mode Linux.

A guest has one CPU, so two guests share the cases where there are two.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from tests.netem import ground, guest

ROOT = Path(__file__).parents[2]
PARTS = (("steady", "userspace"), ("rough", "changing"))
"""The files of cases, for one guest each."""
NOTHING = 5
"""pytest's exit status where no test was chosen."""
TIMEOUT = 1200.0
"""Seconds that all cases may take in the guest: many times what they need."""


def main(arguments: list[str]) -> int:
    """Run pytest on the cases; its exit status. Without a ground it skips and says why."""
    why_not = ground.native()
    if why_not is None:
        print("netem: in network namespaces of this kernel", flush=True)
    elif (lacking := ground.user_mode()) is None:
        print(f"netem: {why_not}; booting user-mode Linux", flush=True)
        return _in_guests(arguments)
    else:
        print(f"netem: SKIPPED. Here: {why_not}. User-mode Linux: {lacking}", flush=True)
    return subprocess.run(_pytest(_all(PARTS), arguments), cwd=ROOT, check=False).returncode


def _in_guests(arguments: Sequence[str]) -> int:
    """The worst exit status. What the second guest printed comes after the first's."""
    parts: Sequence[Sequence[str]] = PARTS if len(os.sched_getaffinity(0)) > 1 else [_all(PARTS)]
    later = [io.StringIO() for _ in parts[1:]]
    outs: list[TextIO] = [sys.stdout, *later]
    with ThreadPoolExecutor(len(parts)) as pool:
        codes = list(
            pool.map(
                lambda part, out: guest.run(_pytest(part, arguments), ROOT, TIMEOUT, out),
                parts,
                outs,
            )
        )
    for out in later:
        print(out.getvalue(), flush=True)
    # With -k there may be nothing for one of them to do.
    return max((code for code in codes if code != NOTHING), default=NOTHING)


def _pytest(cases: Sequence[str], arguments: Sequence[str]) -> list[str]:
    # By name: these are no test_*.py, so that a plain `pytest` leaves them alone.
    files = [f"tests/netem/{each}.py" for each in cases]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *files, *arguments]


def _all(parts: Sequence[Sequence[str]]) -> list[str]:
    return [case for part in parts for case in part]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
