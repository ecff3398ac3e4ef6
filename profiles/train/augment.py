"""Random crops and flips of uint8 frames, with the antialiasing a downscaled crop needs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom of a crop, in pixels of the frame."""


def random_box(
    rng: np.random.Generator, side: int, scale: tuple[float, float], ratio: float = 4 / 3
) -> Box:
    """A box whose area is a uniform share ``scale`` of a ``side`` x ``side`` frame.

    Its aspect ratio is log-uniform in [1/ratio, ratio] (the usual "random resized crop").
    """
    area = side * side * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(-math.log(ratio), math.log(ratio)))
    width = min(side, math.sqrt(area * aspect))
    height = min(side, math.sqrt(area / aspect))
    left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
    return left, top, left + width, top + height


def crop(frame: npt.NDArray[np.uint8], box: Box, side: int) -> npt.NDArray[np.uint8]:
    """The pixels of ``frame`` [h, w, 3] inside ``box``, resized to [side, side, 3]."""
    image = Image.fromarray(frame)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def random_crops(
    rng: np.random.Generator,
    frames: npt.NDArray[np.uint8],
    side: int,
    scale: tuple[float, float],
) -> npt.NDArray[np.uint8]:
    """One random crop of each of ``frames`` [n, s, s, 3], half of them flipped."""
    out = np.empty((len(frames), side, side, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        piece = crop(frame, random_box(rng, frame.shape[0], scale), side)
        out[index] = piece[:, ::-1] if rng.random() < 0.5 else piece
    return out


def central(frames: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Every whole frame of ``frames`` [n, s, s, 3], resized to [n, side, side, 3]."""
    if frames.shape[1] == side:
        return np.ascontiguousarray(frames)
    edge = float(frames.shape[1])
    return np.stack([crop(frame, (0.0, 0.0, edge, edge), side) for frame in frames])
