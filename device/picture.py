"""Pictures of any format and size to pixels at the profile's input size.

JPEG goes through simplejpeg, decoded at the smallest of libjpeg's eighths that is still large
enough; everything else goes through Pillow, imported on first use. A picture keeps its aspect: the
central part with the input's aspect is cut out and resampled with the antialiased bicubic filter
(a = -0.5, Pillow's, with which the profiles' training pictures were made).
"""

from __future__ import annotations

import io
import struct
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from device.strategy import Pixels

LARGEST = 200_000_000
"""Pixels of the largest picture decoded: a small file must not ask for all memory."""

_ORIENTATION = 0x0112
_TAIL = 4096
"""Bytes at the end of a JPEG among which its end marker must be."""


def load(data: bytes | bytearray | memoryview | Path, height: int, width: int) -> Pixels:
    """The picture in `data` (or in a file) as uint8 [height, width, 3] RGB.

    Raises ValueError with a text for people if it is none, OSError if the file cannot be read.
    """
    if isinstance(data, Path):
        data = data.read_bytes()
    if not data:
        raise ValueError("the file is empty")
    if bytes(data[:2]) == b"\xff\xd8":
        pixels = _jpeg(data, height, width)
        if pixels is not None:
            return fit(pixels, height, width)
    return fit(_other(data), height, width)


def fit(pixels: Pixels, height: int, width: int) -> Pixels:
    """Cut the central part of `pixels` uint8 [H, W, 3] or [H, W] and resample it to the size.

    The identity where the size is right already. Raises ValueError on another shape or dtype.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {list(pixels.shape)}")
    rows, columns, _ = pixels.shape
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(pixels)
    scale = min(rows / height, columns / width)
    index, weight = taps(rows, height, scale)
    narrow = np.zeros((height, columns, 3), dtype=np.float32)
    for tap in range(index.shape[1]):
        narrow += pixels[index[:, tap]] * weight[:, tap, None, None]
    index, weight = taps(columns, width, scale)
    small = np.zeros((height, width, 3), dtype=np.float32)
    for tap in range(index.shape[1]):
        small += narrow[:, index[:, tap]] * weight[None, :, tap, None]
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def taps(
    size: int, target: int, scale: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Source indices and weights [target, taps] of the central `target * scale` of `size` items."""
    stretch = max(scale, 1.0)
    centre = (size - target * scale) / 2 + (np.arange(target) + 0.5) * scale
    first = np.floor(centre - 2 * stretch).astype(np.intp)
    index = first[:, None] + np.arange(int(np.ceil(4 * stretch)) + 1)
    x = np.abs((index + 0.5 - centre[:, None]) / stretch)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight[(index < 0) | (index >= size)] = 0.0
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weight.astype(np.float32)


def _jpeg(data: bytes | bytearray | memoryview, height: int, width: int) -> Pixels | None:
    """Decode a JPEG, upright; None if its colours are for Pillow (CMYK)."""
    import simplejpeg

    try:
        rows, columns, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if rows * columns > LARGEST:
            raise ValueError(f"{columns}x{rows} pixels are too many")
        if colorspace in ("CMYK", "YCCK"):
            return None
        turn = orientation(bytes(data[:65536]))
        if turn > 4:
            height, width = width, height
        # Odd but whole pictures are common; one cut short would be answered half grey.
        whole = b"\xff\xd9" in bytes(data[-_TAIL:])
        pixels = simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_height=height, min_width=width, strict=not whole
        )
    except ValueError as error:
        raise ValueError(f"this JPEG cannot be decoded: {error}") from None
    return _upright(np.asarray(pixels), turn)


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """Undo EXIF orientation `turn` (1-8)."""
    if turn > 4:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def orientation(head: bytes) -> int:
    """The EXIF orientation (1-8) in the first bytes of a JPEG; 1 where it says nothing."""
    at = 2
    while at + 4 <= len(head) and head[at] == 0xFF and head[at + 1] not in (0xDA, 0xD9):
        length = int.from_bytes(head[at + 2 : at + 4], "big")
        if head[at + 1] == 0xE1 and head[at + 4 : at + 10] == b"Exif\0\0":
            return _tiff_orientation(head[at + 10 : at + 2 + length])
        at += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION and kind == 3 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1


def _other(data: bytes | bytearray | memoryview) -> Pixels:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError("only JPEG can be read without Pillow: pip install pillow") from None
    try:
        # A picture beyond Pillow's own limit is a warning first: here it is an error.
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(data)) as image,
        ):
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"this is no picture that can be read: {error}") from None
    except Image.DecompressionBombWarning as error:
        raise ValueError(f"the picture is too large: {error}") from None
