"""Arrays to compact bytes and back: raw, lz4, zstd, jpeg.

Decoding checks the announced shape against what the bytes say before memory is taken, so a few
bytes cannot ask for gigabytes. Each library is imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from common.messages import Tensor

Array = npt.NDArray[Any]


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _array(data: Any, tensor: Tensor) -> Array:
    if len(data) != _size(tensor):
        raise ValueError(f"{tensor.codec}: {len(data)} bytes do not hold {tensor.shape}")
    return np.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape)


def _raw_encode(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _raw_decode(tensor: Tensor) -> Array:
    return _array(tensor.data, tensor)


def _lz4_encode(array: Array) -> bytes:
    import lz4.block

    return bytes(lz4.block.compress(_raw_encode(array), store_size=False))


def _lz4_decode(tensor: Tensor) -> Array:
    import lz4.block

    try:
        data = lz4.block.decompress(tensor.data, uncompressed_size=_size(tensor))
    except lz4.block.LZ4BlockError as error:
        raise ValueError(f"lz4: {error}") from None
    return _array(data, tensor)


def _zstd_encode(array: Array, level: int = 1) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress(_raw_encode(array))


def _zstd_decode(tensor: Tensor) -> Array:
    import zstandard

    try:
        if zstandard.frame_content_size(tensor.data) != _size(tensor):
            raise ValueError(f"zstd: the frame does not hold {tensor.shape}")
        data = zstandard.ZstdDecompressor().decompress(tensor.data)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from None
    return _array(data, tensor)


def _jpeg_encode(array: Array, quality: int = 75) -> bytes:
    import simplejpeg

    coded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(array), quality, colorspace="RGB", colorsubsampling="420"
    )
    return bytes(coded)


def _jpeg_decode(tensor: Tensor) -> Array:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(tensor.data)
        if tensor.dtype != "uint8" or (height, width, 3) != tensor.shape:
            raise ValueError(f"a picture of {width}x{height} is not of shape {tensor.shape}")
        return np.asarray(simplejpeg.decode_jpeg(tensor.data, colorspace="RGB"))
    except ValueError as error:
        raise ValueError(f"jpeg: {error}") from None


CODECS: dict[str, tuple[Callable[..., bytes | memoryview], Callable[[Tensor], Array]]] = {
    "raw": (_raw_encode, _raw_decode),
    "lz4": (_lz4_encode, _lz4_decode),
    "zstd": (_zstd_encode, _zstd_decode),
    "jpeg": (_jpeg_encode, _jpeg_decode),
}


def encode(array: Array, codec: str = "raw", **options: int) -> Tensor:
    """`array` coded by `codec` ("jpeg": uint8 [H, W, 3], lossy, `quality` 1-100, 4:2:0).

    "raw" copies nothing: the tensor is a view of the array.
    """
    data = CODECS[codec][0](array, **options)
    return Tensor(data, str(array.dtype), array.shape, codec)


def decode(tensor: Tensor) -> Array:
    """The array in `tensor`; a view for "raw". Raises ValueError if the bytes do not hold it."""
    if tensor.codec not in CODECS:
        raise ValueError(f"unknown codec {tensor.codec!r}")
    return CODECS[tensor.codec][1](tensor)
