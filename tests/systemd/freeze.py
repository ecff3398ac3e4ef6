"""Hangs threads of a running program from outside, by ptrace: no test code in the product.

with frozen(pid, but=pid): ...      # every thread hangs but the first: a hung executor
with frozen(pid, only=pid): ...     # the first thread alone hangs: a hung event loop
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def frozen(pid: int, *, only: int | None = None, but: int | None = None) -> Iterator[list[int]]:
    """Threads of `pid` stand still inside the block, as far as the process survives it."""
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    held = [t for t in threads if t != but and only in (None, t)]
    # One that runs may hold the interpreter's lock, and all the others would hang with it.
    for _ in range(600):
        if all(_state(pid, thread) == "S" for thread in held):
            break
        time.sleep(0.05)
    for thread in held:
        _call(SEIZE, thread)
        _call(INTERRUPT, thread)
        os.waitpid(thread, WALL)
    try:
        yield held
    finally:
        for thread in held:
            with contextlib.suppress(OSError):  # it may have been killed meanwhile
                _call(DETACH, thread)


def bury(threads: list[int]) -> None:
    """Take note of those that have died: until their tracer has, nobody else hears of it."""
    for thread in threads:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(thread, WALL | os.WNOHANG)


def _state(pid: int, thread: int) -> str:
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(") ")[2][0]


def _call(request: int, thread: int) -> None:
    if _ptrace(request, thread, None, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request} of thread {thread}")
