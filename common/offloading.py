"""What both sides of the strategy `offload` agree on: how a signal becomes parts of symbols.

DeepCOD's baselines (Yao et al., SenSys 2020, section 6.2) share one way: a signal is resampled, or
projected as compressive sensing does, then quantised evenly and entropy coded by the same kind of
book as DeepCOD's own symbols. A *signal* is a list of float32 planes [c, *grid]: a picture's
brightness and its two colours at half the resolution, or one map of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from common.book import MOST, Book
from common.errors import ConfigError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Shape = tuple[int, ...]
BLOCK = 16
"""Largest side of a block that is sensed on its own."""


@dataclass(frozen=True, slots=True)
class Part:
    """Values of one range: uint8 symbols of `levels` even steps from `low` to `high`."""

    low: float
    high: float
    levels: int

    def quantise(self, values: F32) -> U8:
        """The nearest step of each value; what lies outside goes to the ends."""
        steps = (values - np.float32(self.low)) * np.float32(
            (self.levels - 1) / (self.high - self.low)
        )
        symbols: U8 = np.rint(np.clip(steps, 0, self.levels - 1)).astype(np.uint8)
        return symbols

    def restore(self, symbols: U8) -> F32:
        """The values that symbols stand for."""
        step = (self.high - self.low) / (self.levels - 1)
        return symbols.astype(np.float32) * np.float32(step) + np.float32(self.low)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of "intp", "lossy" (the same at scale 1) or "cs".

    `scale`: of each side of a plane's grid. `ratio`: of a block's values that are sensed; None: all
    are sent as they are. `penalty`: what a coefficient costs in the recovery (lambda). `parts`: one
    for each plane, two if sensed: the blocks' means, then the rest.
    """

    scale: float
    ratio: float | None
    penalty: float
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Setting:
        """The setting in a row of a profile. Raises ConfigError if it is none."""
        try:
            parts = tuple(
                Part(float(low), float(high), int(levels)) for low, high, levels in row["parts"]
            )
            ratio = row.get("ratio")
            made = cls(
                float(row["scale"]),
                None if ratio is None else float(ratio),
                float(row.get("penalty", 0.0)),
                parts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"a setting of offload: {error!r}") from None
        if not 0 < made.scale <= 1 or any(
            p.high <= p.low or not 2 <= p.levels <= 256 for p in parts
        ):
            raise ConfigError("a setting of offload: a scale or a part out of range")
        return made

    def resampled(self, shape: Shape) -> Shape:
        """The shape of a plane [c, *grid] as it is coded."""
        return shape[0], *(max(1, round(self.scale * side)) for side in shape[1:])

    def shapes(self, planes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the parts of a signal whose planes are of those shapes."""
        made: list[Shape] = []
        for plane in planes:
            small = self.resampled(plane)
            if self.ratio is None:
                made.append(small)
            else:
                count, size = blocks(small)
                made += [(1, count), (1, count * (sensed(size, self.ratio) - 1))]
        return made


def blocks(shape: Shape) -> tuple[int, int]:
    """How many blocks a plane [c, *grid] has, and how many values each of them."""
    size = math.prod(block(shape))
    return math.prod(shape) // size, size


def block(shape: Shape) -> Shape:
    """The sides of a plane's blocks: the largest divisors up to BLOCK."""
    return tuple(max(s for s in range(1, BLOCK + 1) if side % s == 0) for side in shape[1:])


def sensed(size: int, ratio: float) -> int:
    """Measurements of a block of `size` values: its mean and one more at least."""
    return min(size, max(2, round(ratio * size)))


def cut(plane: F32) -> F32:
    """A plane [c, *grid] as its blocks [n, values]."""
    sides = block(plane.shape)
    if len(sides) == 1:
        return plane.reshape(-1, sides[0])
    c, h, w = plane.shape
    tiles = plane.reshape(c, h // sides[0], sides[0], w // sides[1], sides[1])
    return tiles.transpose(0, 1, 3, 2, 4).reshape(-1, math.prod(sides))


@lru_cache(maxsize=16)
def projection(size: int) -> F32:
    """Orthonormal rows [size, size]: the scaled mean first, the others random but always the same.

    Any first rows of it are a measurement matrix (Candes, Romberg and Tao 2003).
    """
    random = np.random.Generator(np.random.PCG64(size)).standard_normal((size, size))
    random[:, 0] = 1.0
    rows, upper = np.linalg.qr(random)
    return np.ascontiguousarray((rows * np.sign(np.diag(upper))).T, dtype=np.float32)


def banded(shape: Shape) -> Shape:
    """`shape` [c, *grid] as books take it: no more than MOST places in a channel.

    Where a grid is larger, bands of its rows count as channels.
    """
    c, rows, *rest = shape
    width = math.prod(rest)
    if rows * width <= MOST:
        return shape
    if width > MOST or not rest:
        size = rows * width
        bands = next(b for b in range(-(-size // MOST), size + 1) if size % b == 0)
        return c * bands, size // bands
    bands = next(b for b in range(1, rows + 1) if rows % b == 0 and rows // b * width <= MOST)
    return c * bands, rows // bands, *rest


def pack(symbols: Sequence[U8], books: Sequence[Book]) -> bytes:
    """The codes of parts, one after another, behind the sizes of all but the last (uint16)."""
    codes = [b.encode(s.reshape(banded(s.shape))) for s, b in zip(symbols, books, strict=True)]
    sizes = np.array([len(code) for code in codes[:-1]], dtype="<u2")
    return sizes.tobytes() + b"".join(codes)


def unpack(code: bytes | memoryview, shapes: Sequence[Shape], books: Sequence[Book]) -> list[U8]:
    """The symbols of all parts in `code`. Raises ValueError if it is not theirs."""
    at = 2 * (len(shapes) - 1)
    if len(code) < at:
        raise ValueError("the code ends early")
    sizes = np.frombuffer(code[:at], dtype="<u2").tolist()
    symbols = []
    for place, (shape, book) in enumerate(zip(shapes, books, strict=True)):
        end = at + sizes[place] if place < len(sizes) else len(code)
        symbols.append(book.decode(code[at:end], *banded(shape)[1:]).reshape(shape))
        at = end
    return symbols


def longest(shapes: Sequence[Shape], books: Sequence[Book]) -> int:
    """No code of parts of these shapes takes more bytes."""
    heads = 2 * (len(shapes) - 1)
    return heads + sum(
        book.longest(math.prod(banded(shape)[1:]))
        for shape, book in zip(shapes, books, strict=True)
    )
