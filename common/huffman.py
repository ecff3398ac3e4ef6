"""Canonical Huffman codes whose statistics are known beforehand: lengths alone define a code.

Huffman 1952; lengths bounded by package-merge (Larmore and Hirschberg 1990).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 12
"""Bits of the longest code: a decoder's table has 2^12 entries for each channel."""

U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def lengths(counts: npt.NDArray[np.floating] | Ints, longest: int = LONGEST) -> U8:
    """The best code lengths, none above `longest`, of items that occur `counts` [k] times (>0)."""
    single: list[tuple[float, tuple[int, ...]]] = sorted(
        (float(count), (item,)) for item, count in enumerate(counts)
    )
    if not 2 <= len(single) <= 2**longest or single[0][0] <= 0:
        raise ValueError(f"no code of {longest} bits for {len(single)} items of counts above 0")
    found = single
    for _ in range(longest - 1):
        merged = [
            (found[at][0] + found[at + 1][0], found[at][1] + found[at + 1][1])
            for at in range(0, len(found) - 1, 2)
        ]
        found = sorted(single + merged)
    chosen = [item for _, items in found[: 2 * len(single) - 2] for item in items]
    return np.bincount(chosen, minlength=len(single)).astype(np.uint8)


def codes(lengths: U8) -> Ints:
    """The canonical codes [k] of items with those lengths [k]; 0 is an item that has no code.

    Raises ValueError if they make no complete prefix code.
    """
    held = np.flatnonzero(lengths)
    widths = 1 << (LONGEST - np.minimum(lengths, LONGEST).astype(np.int64))
    if lengths.max(initial=0) > LONGEST or widths[held].sum() != 1 << LONGEST:
        raise ValueError(f"these lengths make no complete prefix code of {LONGEST} bits at most")
    order = held[np.lexsort((held, lengths[held]))]
    made = np.zeros(len(lengths), dtype=np.int64)
    made[order] = (np.cumsum(widths[order]) - widths[order]) >> (LONGEST - lengths[order])
    return made


def table(lengths: U8) -> Ints:
    """What the next LONGEST bits begin with: item * 16 + its length, int64 [2^LONGEST]."""
    held = np.flatnonzero(lengths)
    order = held[np.lexsort((held, lengths[held]))].astype(np.int64)
    long = lengths[order].astype(np.int64)
    return np.repeat(order * 16 + long, 1 << (LONGEST - long))
