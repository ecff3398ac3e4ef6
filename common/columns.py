"""The code of a map's symbols, place after place: Huffman codes with contexts, known beforehand.

What `common.book` does along each channel is done here along the channels of each place: an item
is a value and how many zeros came before it, and one more item ends a place. As there, nothing of a
book is sent. Two things that both sides know say what comes:

- Which code an item has depends on the channel that it starts at and on how busy its place is: the
  values that it has had so far, STEP times, and those of the place before and the one above.
  `bounds` part that into CLASSES.
- The first channels (the first principal components, such as the mean brightness) are coded by
  their differences, modulo the levels, from a linear guess: from the channels before, here and
  around, and the channel's own symbols to the left and above.

A channel's *zero* is its most frequent symbol, or difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from common.book import (
    BASES,
    CLASS,
    EXTRA,
    MOST,
    REST,
    Bools,
    entries,
    lengths_of,
    packed,
    runs,
    windows,
)
from common.guess import Guess, fitted
from common.huffman import LONGEST, U8, Ints, table

CLASSES, STEP = 4, 4
"""How many there are, and what a value at the place itself counts."""


class ColumnBook:
    """The codes of a map.

    `lengths` uint8 [channels, CLASSES, kinds of runs * levels + 2]: of the code of each item, 0 if
    it has none: run class * levels + symbol, the end, the rare. `bounds` [channels, CLASSES - 1]:
    how busy a place of each class is at most. `zeros` uint8 [channels]. `taps` int16: see `Guess`.
    Raises ValueError if they are no such tables.
    """

    def __init__(self, lengths: U8, bounds: Ints, zeros: U8, taps: npt.NDArray[np.int16]) -> None:
        channels, classes, items = lengths.shape
        self.kinds = kinds(channels)
        self.levels = (items - 2) // self.kinds
        if (
            items != self.kinds * self.levels + 2
            or classes != CLASSES
            or not 2 <= self.levels <= 255
            or zeros.shape != (channels,)
            or bounds.shape != (channels, CLASSES - 1)
            or taps.shape[1] > channels
            or not lengths[..., -2:].all()
            or zeros.max() >= self.levels
        ):
            raise ValueError("a book has code lengths, bounds and a zero for every channel")
        self.tables: dict[str, npt.NDArray[Any]] = {
            "lengths": lengths,
            "bounds": bounds,
            "zeros": zeros,
            "taps": taps,
        }
        self._lengths = lengths.reshape(-1, items)
        # The code of an end is that of the symbol after the last.
        self._entries = np.stack([entries(each, self.levels, self.kinds) for each in self._lengths])
        self._busiest = busiest = (2 + STEP) * channels + 1
        classes_of = (np.arange(busiest)[:, None] > bounds[:, None]).sum(2)
        beyond = np.zeros((1, busiest), np.int64)  # no code starts there
        self._rows = np.concatenate((classes_of + CLASSES * np.arange(channels)[:, None], beyond))
        self._starts = self._rows * (self.kinds * (self.levels + 1))
        self._runs = CLASS * (self.levels + 1)
        self.zeros, self.guess = zeros, Guess(taps, self.levels)

    @classmethod
    def read(cls, file: Mapping[str, Any]) -> ColumnBook:
        """The book in the arrays of a file. Raises KeyError, ValueError if there is none."""
        return cls(file["lengths"], file["bounds"], file["zeros"], file["taps"])

    @property
    def channels(self) -> int:
        """How many channels there are codes for."""
        return len(self.zeros)

    def longest(self, places: int) -> int:
        """No code of `places` symbols per channel takes more bytes."""
        return -(-places * (self.channels * (LONGEST + 12) + LONGEST) // 8)

    def encode(self, symbols: U8) -> bytes:
        """Symbols [channels, *grid], each below `levels`, as bits."""
        places = np.moveaxis(symbols, 0, -1).copy()
        guessed = places[..., : self.guess.channels]
        guessed[:] = self.guess.differences(guessed)
        return self.code(places != self.zeros, lambda at: places.take(at, mode="clip"))

    def code(self, told: Bools, symbols: Callable[[Ints], U8]) -> bytes:
        """The bits of what `told` [*grid, channels] says is not its channel's zero.

        `symbols` gives those at flat places of it, differences where a channel is guessed; of a
        place beyond the last, anything.
        """
        *_, width, channels = told.shape
        at, place, run, ends = runs(told.reshape(-1, channels))
        first = np.zeros_like(ends)
        first[1:] = ends[:-1] + 1
        value, rest = symbols(at), REST.take(run)
        value[ends], rest[ends] = self.levels, 0
        # The row of `_starts` is the channel that an item starts at, at - run - channels * place.
        base = around(ends - first, width) - STEP * first
        base -= self._busiest * channels * np.arange(len(base))
        start = at - run
        start *= self._busiest
        start += base.take(place)
        start += np.arange(0, STEP * len(at), STEP)
        entry = self._starts.take(start)
        entry += self._runs.take(run)
        entry += value
        entry = self._entries.take(entry)
        return packed((entry >> 8) + rest, entry & 255)

    def decode(self, data: bytes | bytearray | memoryview, *grid: int) -> U8:
        """The symbols uint8 [channels, *grid] in `data`. Raises ValueError if it is not theirs."""
        places, width, channels, levels = math.prod(grid), grid[-1], self.channels, self.levels
        window, bits = windows(data)
        rows, total, at = self._known, len(bits), 0
        bases, wide = BASES.tolist(), EXTRA.tolist()
        where: list[int] = []
        values: list[int] = []
        counts: list[int] = []
        for place in range(places):
            busy = (counts[-1] if place else 0) + (counts[place - width] if place >= width else 0)
            start, before, first = 0, len(where), place * channels - 1
            while start < channels:
                if at >= total:
                    raise ValueError("the code ends early")
                entry = rows[start][busy][window[at]]
                item, at = entry >> 4, at + (entry & 15)
                if item >= self._end:
                    if item == self._end:
                        break
                    kind, value = window[at] >> 8, window[at] & 255
                    at += 12
                    if value >= levels or kind >= self.kinds:
                        raise ValueError("the code holds a symbol beyond the levels")
                else:
                    kind, value = divmod(item, levels)
                if wide[kind]:
                    start += window[at] >> (LONGEST - wide[kind])
                    at += wide[kind]
                start += bases[kind] + 1
                where.append(first + start)
                values.append(value)
                busy += STEP
            if start > channels:
                raise ValueError("the code holds more symbols than there are channels")
            counts.append(len(where) - before)
        if at > total or total - at >= 8 or bits[at:].any():
            raise ValueError("the code is not as long as its symbols")
        symbols = np.tile(self.zeros, places)
        symbols[where] = values
        made = symbols.reshape(places // width, width, channels)
        self.guess.restore(made[..., : self.guess.channels])
        return np.ascontiguousarray(np.moveaxis(made, -1, 0)).reshape(channels, *grid)

    @property
    def _end(self) -> int:
        return int(self.kinds * self.levels)

    @cached_property
    def _known(self) -> list[list[memoryview]]:
        """What the next bits begin with (`common.huffman.table`), by start and how busy it is."""
        tables = [table(row).astype(np.int32).data for row in self._lengths]
        return [[tables[row] for row in rows] for rows in self._rows.tolist()]


def kinds(channels: int) -> int:
    """How many classes the runs within so many channels fall into.

    Raises ValueError if those are too many.
    """
    if channels > MOST:
        raise ValueError(f"a place has {MOST} channels at most")
    return int(CLASS[channels]) + 1


def around(counts: Ints, width: int) -> Ints:
    """Of [..., places] in rows of `width` what the place before and the one above have together."""
    both = np.zeros_like(counts)
    both[..., 1:] = counts[..., :-1]
    both[..., width:] += counts[..., :-width]
    return both


def trained(symbols: U8, levels: int) -> ColumnBook:
    """The best book for the symbols [n, c, *grid] of n frames."""
    n, channels, *grid = symbols.shape
    height, width = math.prod(grid[:-1]), grid[-1]
    shape = (channels, CLASSES, kinds(channels) * levels + 2)
    made = np.moveaxis(symbols.reshape(n, channels, height, width), 1, -1).copy()
    guess = fitted(made, levels)
    for each in made[..., : guess.channels]:
        each[:] = guess.differences(each)
    flat = made.reshape(-1, channels)
    zeros = np.array([np.bincount(column).argmax() for column in flat.T], np.uint8)
    at, place, run, ends = runs(flat != zeros)
    first = np.append(0, ends[:-1] + 1)
    busy = around((ends - first).reshape(n, -1), width).reshape(-1)
    level = STEP * (np.arange(len(at)) - first[place]) + busy[place]
    start = at - run - channels * place
    item = CLASS[run] * levels + flat.reshape(-1).take(at, mode="clip")
    item[ends] = shape[-1] - 2
    coded = start < channels
    level, start, item = level[coded], start[coded], item[coded]
    bounds = np.zeros((channels, CLASSES - 1), np.int64)
    shares = np.arange(1, CLASSES) / CLASSES
    for channel in range(channels):
        found = level[start == channel]
        if len(found):
            bounds[channel] = np.quantile(found, shares, method="lower")
    row = start * CLASSES + (level[:, None] > bounds[start]).sum(1)
    counts = np.bincount(row * shape[-1] + item, minlength=math.prod(shape))
    lengths = np.stack([lengths_of(each) for each in counts.reshape(-1, shape[-1])])
    return ColumnBook(lengths.reshape(shape), bounds, zeros, guess.taps)
