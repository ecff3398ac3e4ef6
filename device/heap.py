"""What the C library keeps of freed memory. Only glibc is told: others have no such calls."""

from __future__ import annotations

import contextlib
import ctypes

ARENA_MAX = -8
"""M_ARENA_MAX of mallopt."""


def one_for_all_threads() -> None:
    """Each thread's own would keep what a model freed in it, 10 to 30 MB. Before any starts."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)


def give_back() -> None:
    """What is free goes back to the system: opening a model leaves a few MB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
