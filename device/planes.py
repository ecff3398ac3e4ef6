"""A frame as the planes of `common.offloading`, and planes at other sizes."""

from __future__ import annotations

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
    small = mean(pixels.astype(np.float32), pixels.shape[0] // h)
    if small.shape[:2] != (h, w):
        raise ValueError(f"a frame {pixels.shape} has no planes of {h} x {w}")
    parts = (small.reshape(-1, 3) @ YCBCR.T).T.reshape(3, h, w)
    colours = mean(parts[1:].transpose(1, 2, 0), h // shapes[1][1]).transpose(2, 0, 1)
    return [parts[:1], colours]


def mean(values: F32, factor: int) -> F32:
    """The mean of every `factor` x `factor` places of [h, w, c]."""
    if factor == 1:
        return values
    h, w, c = values.shape
    tiles = values.reshape(h // factor, factor, w // factor, factor, c)
    return np.asarray(tiles.mean(axis=(1, 3)), dtype=np.float32)


def resampled(plane: F32, shape: Shape) -> F32:
    """A plane [c, *grid] at the size of `shape`, bicubic with antialiasing."""
    for axis in range(1, plane.ndim):
        if plane.shape[axis] != shape[axis]:
            weights = matrix(plane.shape[axis], shape[axis])
            plane = np.moveaxis(np.moveaxis(plane, axis, -1) @ weights, -1, axis)
    return np.ascontiguousarray(plane)


def matrix(size: int, target: int) -> npt.NDArray[np.float32]:
    """Weights [size, target] that resample one side."""
    index, weight = taps(size, target, size / target)
    made = np.zeros((size, target), dtype=np.float32)
    np.add.at(made, (index, np.arange(target)[:, None]), weight)
    return made
