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
CLASS = np.searchsorted(BASES, np.arange(MOST + 1), side="right") - 1
REST = np.arange(MOST + 1) - BASES[CLASS]
"""Of each run its class, and what that leaves open."""
Bools = npt.NDArray[np.bool_]


class Book:
    """The codes of all channels.

    `lengths` uint8 [channels, RUNS * (levels - 1) + 2]: of the code of each item, 0 if it has none:
    run class * (levels - 1) + value, the end, the rare. `zeros` uint8 [channels], `predicted`
    bool [channels]. Raises ValueError if they are no such tables.
    """

    def __init__(self, lengths: U8, zeros: U8, predicted: Bools) -> None:
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
        self._entries = np.stack([entries(*each) for each in zip(lengths, zeros, strict=True)])
        self._next = [table(row) for row in lengths]
        self.zeros, self.predicted = zeros[:, None], np.flatnonzero(predicted)

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
        return len(self.zeros)

    def longest(self, places: int) -> int:
        """No code of `places` symbols per channel takes more bytes."""
        return -(-self.channels * (places * (LONGEST + 12) + LONGEST) // 8)

    def encode(self, symbols: U8) -> bytes:
        """Symbols [channels, *grid], each below `levels`, as bits, channel after channel."""
        made = symbols
        if len(self.predicted):
            made = symbols.copy()
            made[self.predicted] = self.differences(symbols[self.predicted])
        flat = made.reshape(self.channels, -1)
        at, channel, run, ends = runs(flat != self.zeros)
        value, rest = flat.take(at, mode="clip"), REST.take(run)
        value[ends], rest[ends] = self.zeros[:, 0], 0  # the code of a zero is that of the end
        entry = self._entries.take((channel * RUNS + CLASS.take(run)) * self.levels + value)
        return packed((entry >> 8) + rest, entry & 255)

    def differences(self, symbols: U8) -> U8:
        """Of the symbols of predicted channels [c, *grid], what is coded."""
        some = symbols.astype(np.int16)
        made: U8 = ((some - expected(some)) % self.levels).astype(np.uint8)
        return made

    def decode(self, data: bytes | bytearray | memoryview, *grid: int) -> U8:
        """The symbols uint8 [channels, *grid] in `data`. Raises ValueError if it is not theirs."""
        places, least = int(np.prod(grid)), self.levels - 1
        if places > MOST:
            raise ValueError(f"a channel has {MOST} places at most")
        window, bits = windows(data)
        total = len(bits)
        symbols = np.repeat(self.zeros, places, axis=1)
        bases, wide, at = BASES.tolist(), EXTRA.tolist(), 0
        for channel, entries in enumerate(self._next):
            zero, place, where, values = int(self.zeros[channel, 0]), 0, [], []
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

    def _sums(self, symbols: U8) -> U8:
        for channel in self.predicted:
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
        inner = guess[:, 1:, 1:]
        inner += symbols[:, :-1, 1:]
        inner += 1
        inner >>= 1
    return guess


def runs(told: Bools) -> tuple[Ints, Ints, Ints, Ints]:
    """What is coded, in order: its flat place, its channel and the run of zeros before it.

    `told` [channels, places]: what is not its channel's zero. After each channel stands an end,
    whose place is the next channel's first, and whose code is empty where its run is; the fourth
    array [channels] says where in the others they are.
    """
    channels, places = told.shape
    closed = np.ones((channels, places + 1), dtype=bool)
    closed[:, :places] = told
    found = np.flatnonzero(closed)
    channel = found // (places + 1)
    run = found - 1
    run[1:] -= found[:-1]
    run[0] += 1
    ends = found.searchsorted((places + 1) * np.arange(1, channels + 1) - 1)
    return found - channel, channel, run, ends


def windows(data: bytes | bytearray | memoryview) -> tuple[list[int], U8]:
    """From each bit of `data` on the next LONGEST, as a number, and a few beyond; and the bits."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    padded = np.concatenate((bits, np.zeros(LONGEST, np.uint8))).astype(np.int64)
    found = np.zeros(len(bits) + 1, dtype=np.int64)
    for bit in range(LONGEST):
        found = found << 1 | padded[bit : bit + len(found)]
    return found.tolist() + [0] * 64, bits


def entries(lengths: U8, zero: int, kinds: int = RUNS) -> Ints:
    """Of each of `kinds` run classes and each symbol, code * 256 + bits [kinds, levels].

    In the code of a class there is room for what it leaves open. A zero's is that of the end, and
    nothing where there is no run.
    """
    made, long = codes(lengths), lengths.astype(np.int64)
    code, bits = (each[:-2].reshape(kinds, -1) for each in (made, long))
    group, value = np.indices(code.shape)
    rare = made[-1] << 12 | group << 8 | value
    wide = EXTRA[:kinds, None]
    code, bits = np.where(bits, code, rare) << wide, np.where(bits, bits, long[-1] + 12) + wide
    entries = np.insert(code << 8 | bits, zero, made[-2] << 8 | long[-2], axis=1)
    entries[0, zero] = 0
    return entries


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
    at, _, run, ends = runs(symbols != zero)
    empty = int((run[ends] == 0).sum())
    run[ends] = 0
    value = symbols.reshape(-1).take(at, mode="clip").astype(np.int64)
    item = CLASS[run] * (levels - 1) + value - (value > zero)
    item[ends] = RUNS * (levels - 1)
    counts = np.bincount(item, minlength=RUNS * (levels - 1) + 2)
    counts[-2] -= empty
    row = lengths_of(counts)
    size = float((row.astype(np.int64) * counts).sum() + 12 * counts[-1] + EXTRA[CLASS[run]].sum())
    return row, zero, size


def lengths_of(counts: Ints) -> U8:
    """The best lengths for items that occur `counts` times, 0 for those too rare to have a code.

    The last two, the end and what stands before the rare, always have one; `counts` is made to
    hold them.
    """
    rare: Bools = counts < max(3, int(counts.sum()) >> LONGEST + 1)
    rare[-2:] = False
    counts[-1] = counts[rare].sum()
    counts[-2:] += 1
    held = np.flatnonzero(~rare)
    made = np.zeros(len(counts), dtype=np.uint8)
    made[held] = lengths(counts[held])
    return made


def packed(code: Ints, length: Ints) -> bytes:
    """Codes of up to 64 bits, one after the other."""
    stops = length.cumsum()
    size = int(stops[-1])
    bits, left = code.view(np.uint64), (-stops & 63).view(np.uint64)
    first = stops.searchsorted(np.arange(1, size + 1, 64))  # to end in each word
    words = np.bitwise_or.reduceat(bits << left, first)
    words[:-1] |= bits[first[1:]] >> 1 >> 63 - left[first[1:]]  # what of it the word before holds
    return words.astype(">u8").tobytes()[: -(-size // 8)]
