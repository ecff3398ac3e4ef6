"""A frame as the planes of `common.offloading`, and planes at other sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from common.offloading import F32, Shape
from device.picture import taps
from device.strategy import Pixels

YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    dtype=np.float32,
)
"""Brightness and two colours of RGB, as JPEG has them (ITU-T T.871)."""


def planes(pixels: Pixels, shapes: list[Shape]) -> list[F32]:
    """The planes of a frame uint8 [H, W, channels], of the given shapes [c, h, w], 0 to 255.

    Of a picture: brightness [1, h, w] and colours [2, h/2, w/2] around 0. Of one channel: itself.
    """
    if pixels.shape[2] == 1:
        return [resampled(pixels.transpose(2, 0, 1).astype(np.float32), shapes[0])]
    _, h, w = shapes[0]
    factor = pixels.shape[0] // h
    if pixels.shape[:2] != (h * factor, w * factor):
        raise ValueError(f"a frame {pixels.shape} has no planes of {h} x {w}")
    small: F32 = sums(pixels, factor, np.uint16).reshape(-1, 3).astype(np.float32)
    scaled: F32 = YCBCR / np.float32(factor**2)
    parts: F32 = (scaled @ small.T).reshape(3, h, w)
    half = h // shapes[1][1]
    colours = [sums(plane, half, np.float32) / np.float32(half**2) for plane in parts[1:]]
    return [parts[:1], np.stack(colours)]


def sums(values: npt.NDArray[Any], factor: int, dtype: type) -> npt.NDArray[Any]:
    """The sum of every `factor` x `factor` places of [h, w, ...]."""
    rows: npt.NDArray[Any] = values[::factor].astype(dtype)
    for place in range(1, factor):
        rows += values[place::factor]
    found = rows[:, ::factor].copy()
    for place in range(1, factor):
        found += rows[:, place::factor]
    return found


def resampled(plane: F32, shape: Shape) -> F32:
    """A plane [c, *grid] at the size of `shape`, bicubic with antialiasing."""
    if plane.ndim == 3 and plane.shape[1] != shape[1]:
        plane = matrix(plane.shape[1], shape[1]).T @ plane
    if plane.shape[-1] != shape[-1]:
        plane = plane @ matrix(plane.shape[-1], shape[-1])
    return np.ascontiguousarray(plane)


@lru_cache(maxsize=32)
def matrix(size: int, target: int) -> npt.NDArray[np.float32]:
    """Weights [size, target] that resample one side."""
    index, weight = taps(size, target, size / target)
    made = np.zeros((size, target), dtype=np.float32)
    np.add.at(made, (index, np.arange(target)[:, None]), weight)
    return made
