"""What the symbols of a map's smooth channels are guessed to be, from those known by then.

A guess is linear: from the channels before, here and all around, and from the channel's own symbols
to the left and above. Weights are whole PARTSths, so that all machines guess alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from common.huffman import U8

SHIFT = 6
PARTS = 1 << SHIFT
"""What a weight of one is as a tap."""
GUESSED = 6
"""Channels that are guessed, at most: each takes a device time."""
OWN = (3, 1)
"""Which of the 3 x 3 a channel itself may be guessed from: what is to the left, and above."""
FARTHEST = 1 << 12
"""No guess is farther off."""
SAMPLE = 400
"""Frames that taps are made from."""
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Guess:
    """Of the first g channels, by `taps` int16 [9 * g, g] of their `features`.

    Raises ValueError if a tap is not `allowed`.
    """

    def __init__(self, taps: npt.NDArray[np.int16], levels: int) -> None:
        self.taps, self.levels, self.channels = taps, levels, taps.shape[1]
        if taps.shape[0] != 9 * self.channels or taps[~allowed(self.channels)].any():
            raise ValueError("taps of a book are of what is known by then")
        self._middle, self._weights = levels // 2, taps.astype(np.float32) / PARTS
        # A guess is of deviations from the middle; what it is off counts from -FARTHEST.
        bias = self._middle * (1 - self._weights.sum(0))
        self._bias: F32 = (bias + (0.5 - FARTHEST)).astype(np.float32)
        self._modulo: U8 = ((np.arange(2 * FARTHEST) - FARTHEST) % levels).astype(np.uint8)

    def differences(self, symbols: U8) -> U8:
        """How far the guesses are off, modulo the levels, of symbols [*grid, g]."""
        *rows, width, count = symbols.shape
        known = symbols.reshape(math.prod(rows), width, count).astype(np.float32)
        guess = features(known, self._middle) @ self._weights
        guess += self._bias
        np.floor(guess, out=guess)
        off = known.reshape(guess.shape) - guess
        made: U8 = self._modulo.take(off.astype(np.int64)).reshape(symbols.shape)
        return made

    def restore(self, differences: U8) -> None:
        """Make `differences` [h, w, g] the symbols that they come from."""
        known = np.full(differences.shape, self._middle, np.float32)
        for channel in range(self.channels):
            beside, ahead = (
                int(self.taps[part * self.channels + channel, channel]) for part in OWN
            )
            sums = features(known, self._middle) @ self._weights[:, channel]
            sums += self._bias[channel] + FARTHEST
            sums *= PARTS
            sums -= (beside + ahead) * self._middle  # what stands there for its own symbols
            bases: list[list[int]] = sums.astype(np.int64).reshape(known.shape[:2]).tolist()
            rows: list[list[int]] = differences[..., channel].tolist()
            above: list[int] = []
            for row, base in zip(rows, bases, strict=True):
                left = above[0] if above else self._middle
                for place, difference in enumerate(row):
                    over = above[place] if above else left
                    guess = base[place] + beside * left + ahead * over >> SHIFT
                    row[place] = left = (difference + guess) % self.levels
                above = row
            known[..., channel] = rows
        differences[:] = known


def features(planes: F32, corner: float) -> F32:
    """What channels are guessed from: of [h, w, c] all places' 3 x 3, float32 [h * w, 9 * c].

    Beyond an edge it is as at the edge; but to the left it is as above that, and above as to the
    left of that (`corner` in the corner), so that a channel's own symbols there are known by then.
    """
    height, width, count = planes.shape
    wide = np.full((height + 2, width + 2, count), corner, np.float32)
    wide[1:-1, 1:-1] = planes
    wide[2:-1, 0], wide[0, 2:-1] = wide[1:-2, 1], wide[1, 1:-2]
    wide[-1], wide[:, -1] = wide[-2], wide[:, -2]
    down, across, along = wide.strides
    shape, strides = (height, width, 3, 3 * count), (down, across, down, along)
    return as_strided(wide, shape, strides).reshape(height * width, 9 * count)


def allowed(count: int) -> Bools:
    """Which taps of so many channels may be: those of channels before, and two own ones."""
    made = np.tile(np.tri(count, k=-1, dtype=bool).T, (9, 1))
    for part in OWN:
        made[part * count : (part + 1) * count] |= np.eye(count, dtype=bool)
    return made


def fitted(places: U8, levels: int) -> Guess:
    """For symbols [n, h, w, channels], of as many channels as get cheaper by it."""
    some = places[:: -(-len(places) // SAMPLE), ..., :GUESSED].astype(np.float32) - levels // 2
    count = some.shape[-1]
    given = np.concatenate([features(each, 0) for each in some])
    taps = np.zeros((9 * count, count), np.int16)
    saved = [0.0]
    for channel, usable in enumerate(allowed(count).T):
        wanted = some[..., channel].reshape(-1)
        solved = np.linalg.lstsq(given[:, usable], wanted, rcond=None)[0]
        taps[usable, channel] = np.rint(PARTS * solved)
        guess = np.floor((given @ taps[:, channel] + PARTS // 2) / PARTS)
        saved.append(_bits(wanted, levels) - _bits(wanted - guess, levels))
    best = int(np.cumsum(saved).argmax())
    kept = taps.reshape(9, count, count)[:, :best, :best]
    return Guess(kept.reshape(9 * best, best), levels)


def _bits(values: npt.NDArray[Any], levels: int) -> float:
    """What `values` modulo the levels take together, one by one."""
    counts = np.bincount((values % levels).astype(np.int64).reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())
