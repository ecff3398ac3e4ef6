"""Huffman coding of symbols whose statistics are known beforehand: the code book is never sent.

Each channel has a book of its own, over pairs of neighbouring symbols: channels differ in how
often each symbol occurs, neighbours are alike, and of a symbol that almost always occurs a code for
each would waste most of a bit. Books are canonical: lengths alone define them.

Huffman 1952; lengths bounded by package-merge (Larmore and Hirschberg 1990).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 12
"""Bits of the longest code: a decoder's table has 2^12 entries for each channel."""

U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def pairs(symbols: U8, levels: int) -> Ints:
    """Symbols [c, n] as pairs [c, ceil(n / 2)] in [0, levels^2); the last one may stand twice."""
    if symbols.shape[1] % 2:
        symbols = np.concatenate((symbols, symbols[:, -1:]), axis=1)
    return symbols[:, ::2].astype(np.int64) * levels + symbols[:, 1::2]


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


class Book:
    """The books of all channels, from their code `lengths` uint8 [channels, levels^2].

    Raises ValueError if they are no complete prefix codes.
    """

    def __init__(self, lengths: U8) -> None:
        channels, items = lengths.shape
        self.levels = round(items**0.5)
        if self.levels**2 != items or lengths.min() < 1 or lengths.max() > LONGEST:
            raise ValueError("a book has the lengths, 1 to 12, of the codes of all pairs")
        self._lengths = lengths.astype(np.int64)
        self._codes = np.zeros_like(self._lengths)
        self._table = np.zeros((channels, 1 << LONGEST), dtype=np.int64)
        widths = 1 << (LONGEST - self._lengths)
        if (widths.sum(axis=1) != 1 << LONGEST).any():
            raise ValueError("the lengths of a book make no complete prefix code")
        for channel in range(channels):
            order = np.lexsort((np.arange(items), self._lengths[channel]))
            width = widths[channel, order]
            starts = np.cumsum(width) - width
            self._codes[channel, order] = starts >> (LONGEST - self._lengths[channel, order])
            entry = order * 16 + self._lengths[channel, order]
            self._table[channel] = np.repeat(entry, width)

    @property
    def channels(self) -> int:
        """How many channels there are books for."""
        return len(self._lengths)

    def encode(self, symbols: U8) -> bytes:
        """Symbols [channels, n], each below `levels`, as bits, channel after channel."""
        items = pairs(symbols, self.levels)
        rows = np.arange(self.channels)[:, None]
        length = self._lengths[rows, items].reshape(-1)
        ends = np.cumsum(length)
        left = np.repeat(ends, length) - 1 - np.arange(ends[-1])
        bits = np.repeat(self._codes[rows, items].reshape(-1), length) >> left & 1
        return np.packbits(bits.astype(np.uint8)).tobytes()

    def decode(self, data: bytes | bytearray | memoryview, count: int) -> U8:
        """The symbols uint8 [channels, count] in `data`. Raises ValueError if it is not theirs."""
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        padded = np.concatenate((bits, np.zeros(LONGEST, np.uint8))).astype(np.int64)
        window = np.zeros(len(bits) + 1, dtype=np.int64)
        for bit in range(LONGEST):
            window = window << 1 | padded[bit : bit + len(window)]
        each = -(-count // 2)
        items = np.empty((self.channels, each), dtype=np.int64)
        at, total = 0, len(bits)
        for channel in range(self.channels):
            # Of all codes that may start here, as plain integers: indexing those is fastest.
            entries = self._table[channel, window[at : at + each * LONGEST]].tolist()
            first, row = at, []
            for _ in range(each):
                if at >= total:
                    raise ValueError("the code ends early")
                entry = entries[at - first]
                row.append(entry >> 4)
                at += entry & 15
            items[channel] = row
        if at > total or total - at >= 8 or bits[at:].any():
            raise ValueError("the code is not as long as its symbols")
        symbols = np.stack((items // self.levels, items % self.levels), axis=2)
        return symbols.reshape(self.channels, 2 * each)[:, :count].astype(np.uint8)


def trained(symbols: U8, levels: int) -> U8:
    """The lengths uint8 [c, levels^2] of the best book for symbols [n, c, places] seen so far.

    A pair that was not seen may come later, so every pair gets a code: what was seen counts as if
    every pair were so common as independent neighbours would make it, in one of 100 symbols more.
    """
    _, channels, _ = symbols.shape
    rows = []
    for channel in range(channels):
        seen = symbols[:, channel]
        joint = np.bincount(pairs(seen, levels).reshape(-1), minlength=levels**2)
        alone = np.bincount(seen.reshape(-1), minlength=levels) + 1.0
        alone /= alone.sum()
        rows.append(lengths(joint + 0.01 * joint.sum() * np.outer(alone, alone).reshape(-1)))
    return np.stack(rows)
