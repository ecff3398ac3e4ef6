"""The code of symbols: zero runs and values under one Huffman code per channel, known beforehand.

Nothing of a book is sent: it is made from training frames and both sides read it from the same
file. Most symbols of most channels are the same one, the channel's *zero*, so what is coded is
where the others are: an item is a value and how many zeros came before it (as in JPEG, ITU-T T.81
annex F, there within a block of all channels). Runs up to 7 are items of their own; a longer one is
the item of its power of two and as many bits as that leaves open. Two items more end a channel
whose rest is zeros, and stand before whatever was too rare to get a code.

A *predicted* channel (the mean brightness, say) is coded by its differences, modulo the levels,
from the mean of the symbols to the left and above; of a sequence, from the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.huffman import LONGEST, U8, Ints, codes, lengths, table

RUNS = 16
"""Classes of runs: 0 to 7 each, then 8-15, 16-31 and so on."""
MOST = 1 << 10
"""Places that a channel may have, so that a run fits the last class."""
BASES = np.array([*range(8), *(8 << n for n in range(RUNS - 8))], dtype=np.int64)
EXTRA = np.array([*[0] * 8, *range(3, RUNS - 5)], dtype=np.int64)
"""The first run of a class, and the bits that say which one it is."""
CLASS = np.searchsorted(BASES, np.arange(MOST), side="right") - 1
REST = np.arange(MOST) - BASES[CLASS]
WIDE = EXTRA[CLASS]
"""Of each run its class, what that leaves open, and in how many bits."""


class Book:
    """The codes of all channels.

    `lengths` uint8 [channels, RUNS * (levels - 1) + 2]: of the code of each item, 0 if it has none:
    run class * (levels - 1) + value, the end, the rare. `zeros` uint8 [channels], `predicted`
    bool [channels]. Raises ValueError if they are no such tables.
    """

    def __init__(self, lengths: U8, zeros: U8, predicted: npt.NDArray[np.bool_]) -> None:
        channels, items = lengths.shape
        self.levels = (items - 2) // RUNS + 1
        if (
            items != RUNS * (self.levels - 1) + 2
            or not 2 <= self.levels <= 256
            or zeros.shape != (channels,)
            or predicted.shape != (channels,)
            or not lengths[:, -2:].all()
            or zeros.max() >= self.levels
        ):
            raise ValueError("a book has code lengths, a zero and a mark for every channel")
        self._tables = {"lengths": lengths, "zeros": zeros, "predicted": predicted}
        self._end, self._rare = items - 2, items - 1
        made = np.stack([codes(row) for row in lengths])
        self._entries = (made << 8 | lengths).reshape(-1)
        self._next = [table(row) for row in lengths]
        self._zeros, self._predicted = zeros, np.flatnonzero(predicted)
        self._row = zeros[:, None]

    @classmethod
    def read(cls, file: Mapping[str, Any]) -> Book:
        """The book in the arrays of a file. Raises KeyError, ValueError if there is none."""
        return cls(file["lengths"], file["zeros"], file["predicted"])

    @property
    def tables(self) -> dict[str, npt.NDArray[Any]]:
        """What `read` reads, by name."""
        return self._tables

    @property
    def channels(self) -> int:
        """How many channels there are codes for."""
        return len(self._zeros)

    def longest(self, places: int) -> int:
        """No code of `places` symbols per channel takes more bytes."""
        return -(-self.channels * (places * (LONGEST + 12) + LONGEST) // 8)

    def encode(self, symbols: U8) -> bytes:
        """Symbols [channels, *grid], each below `levels`, as bits, channel after channel."""
        flat = self._differences(symbols).reshape(self.channels, -1)
        channel, item, run = items(flat, self._row, self.levels)
        at = channel * (self._rare + 1)
        entry = self._entries.take(at + item)
        rare = np.flatnonzero(entry == 0)
        if len(rare):
            spelt = CLASS[run[rare]] << 8 | item[rare] % (self.levels - 1)
            kept = self._entries[at[rare] + self._rare]
            entry[rare] = ((kept >> 8) << 12 | spelt) << 8 | (kept & 255) + 12
        wide = WIDE.take(run)
        return _packed((entry >> 8) << wide | REST.take(run), (entry & 255) + wide)

    def decode(self, data: bytes | bytearray | memoryview, *grid: int) -> U8:
        """The symbols uint8 [channels, *grid] in `data`. Raises ValueError if it is not theirs."""
        places, least = int(np.prod(grid)), self.levels - 1
        if places > MOST:
            raise ValueError(f"a channel has {MOST} places at most")
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        padded = np.concatenate((bits, np.zeros(LONGEST, np.uint8))).astype(np.int64)
        windows = np.zeros(len(bits) + 1, dtype=np.int64)
        for bit in range(LONGEST):
            windows = windows << 1 | padded[bit : bit + len(windows)]
        window, total = windows.tolist() + [0] * 64, len(bits)
        symbols = np.repeat(self._row, places, axis=1)
        bases, wide, at = BASES.tolist(), EXTRA.tolist(), 0
        for channel, entries in enumerate(self._next):
            zero, place, where, values = int(self._zeros[channel]), 0, [], []
            while place < places:
                if at >= total:
                    raise ValueError("the code ends early")
                entry = int(entries[window[at]])
                item, at = entry >> 4, at + (entry & 15)
                if item == self._end:
                    break
                if item == self._rare:
                    run, value = window[at] >> 8, window[at] & 255
                    at += 12
                    if value >= least:
                        raise ValueError("the code holds a symbol beyond the levels")
                else:
                    run, value = divmod(item, least)
                if wide[run]:
                    place += window[at] >> (LONGEST - wide[run])
                    at += wide[run]
                place += bases[run] + 1
                where.append(place - 1)
                values.append(value + (value >= zero))
            if place > places:
                raise ValueError("the code holds more symbols than there are places")
            symbols[channel, where] = values
        if at > total or total - at >= 8 or bits[at:].any():
            raise ValueError("the code is not as long as its symbols")
        return self._sums(symbols.reshape(-1, *grid))

    def _differences(self, symbols: U8) -> U8:
        if not len(self._predicted):
            return symbols
        made = symbols.copy()
        some = symbols[self._predicted].astype(np.int16)
        made[self._predicted] = (some - expected(some)) % self.levels
        return made

    def _sums(self, symbols: U8) -> U8:
        for channel in self._predicted:
            rows = symbols[channel].reshape(-1, symbols.shape[-1]).tolist()
            above: list[int] = []
            for row in rows:
                left = above[0] if above else 0
                for place, difference in enumerate(row):
                    guess = left + above[place] + 1 >> 1 if above and place else left
                    row[place] = left = (difference + guess) % self.levels
                above = row
            symbols[channel] = np.array(rows, dtype=np.uint8).reshape(symbols[channel].shape)
        return symbols


def expected(symbols: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """What [c, *grid] of one or two dimensions is predicted to be, from left and above."""
    guess = np.zeros_like(symbols)
    guess[..., 1:] = symbols[..., :-1]
    if symbols.ndim == 3:
        guess[:, 1:, 0] = symbols[:, :-1, 0]
        guess[:, 1:, 1:] = (symbols[:, 1:, :-1] + symbols[:, :-1, 1:] + 1) >> 1
    return guess


def items(symbols: U8, zeros: U8, levels: int) -> tuple[Ints, Ints, Ints]:
    """The channel, item and run of all that is coded of symbols [channels, places], in order.

    `zeros` [channels, 1]. An end's run is 0.
    """
    channels, places = symbols.shape
    told = np.empty((channels, places + 1), dtype=bool)
    np.not_equal(symbols, zeros, out=told[:, :places])
    np.logical_not(told[:, -2], out=told[:, -1])  # an end stands for zeros up to the last place
    found = np.flatnonzero(told)
    channel, place = np.divmod(found.astype(np.int32), places + 1)
    run = place.copy()
    run[1:] -= place[:-1] + 1
    fresh = np.flatnonzero(run < 0)  # the first of a channel
    run[fresh] = place[fresh]
    end = np.flatnonzero(place == places)
    at = found - channel
    at[end] = 0
    value = symbols.reshape(-1).take(at).astype(np.int64)
    value -= value > zeros.take(channel)
    run[end] = 0
    value += CLASS.take(run) * (levels - 1)
    value[end] = RUNS * (levels - 1)
    return channel.astype(np.int64), value, run.astype(np.int64)


def trained(symbols: U8, levels: int) -> Book:
    """The best book for the symbols [n, c, *grid] of n frames."""
    n, channels, *grid = symbols.shape
    if int(np.prod(grid)) > MOST:
        raise ValueError(f"a channel has {MOST} places at most")
    flat = symbols.reshape(n, channels, -1)
    signed = symbols.reshape(n * channels, *grid).astype(np.int16)
    differing = ((signed - expected(signed)) % levels).astype(np.uint8).reshape(flat.shape)
    rows, zeros, predicted = [], [], []
    for channel in range(channels):
        ways = [_row(kind[:, channel], levels) for kind in (flat, differing)]
        best = int(ways[1][2] < ways[0][2])
        rows.append(ways[best][0])
        zeros.append(ways[best][1])
        predicted.append(bool(best))
    return Book(np.stack(rows), np.array(zeros, dtype=np.uint8), np.array(predicted))


def _row(symbols: U8, levels: int) -> tuple[U8, int, float]:
    """Lengths and zero of one channel's best code for [n, places], and the bits that takes."""
    zero = int(np.bincount(symbols.reshape(-1)).argmax())
    _, item, run = items(symbols, np.full((len(symbols), 1), zero, dtype=np.uint8), levels)
    counts = np.bincount(item, minlength=RUNS * (levels - 1) + 2)
    rare = counts < max(3, len(item) >> LONGEST + 1)
    rare[-2:] = False
    counts[-1] = counts[rare].sum()
    counts[-2:] += 1
    held = np.flatnonzero(~rare)
    row = np.zeros(len(counts), dtype=np.uint8)
    row[held] = lengths(counts[held])
    size = float((row.astype(np.int64) * counts).sum() + 12 * counts[-1] + EXTRA[CLASS[run]].sum())
    return row, zero, size


def _packed(code: Ints, length: Ints) -> bytes:
    """Codes of up to 33 bits, one after the other."""
    ends = length.cumsum()
    starts = ends - length
    word = starts >> 5
    shifted = code << (64 - length - (starts & 31))
    size = int(ends[-1])
    # No two codes share a bit, so adding is joining, and exact in 53 bits.
    sums = np.bincount(word, shifted >> 32 & 0xFFFFFFFF, (size >> 5) + 2)
    sums[1:] += np.bincount(word, shifted & 0xFFFFFFFF, (size >> 5) + 1)
    return sums.astype(">u4").tobytes()[: -(-size // 8)]
