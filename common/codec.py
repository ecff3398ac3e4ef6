"""Arrays to compact bytes and back: raw, lz4, zstd, lzw, jpeg, webp.

Decoding checks the announced shape against what the bytes say before memory is taken, so a few
bytes cannot ask for gigabytes. Each library is imported on first use.
"""

from __future__ import annotations

import io
import math
import struct
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


def _lzw_encode(array: Array) -> bytes:
    from common import lzw

    return lzw.compress(_raw_encode(array))


def _lzw_decode(tensor: Tensor) -> Array:
    from common import lzw

    try:
        data = lzw.expand(tensor.data, _size(tensor))
    except ValueError as error:
        raise ValueError(f"lzw: {error}") from None
    return _array(data, tensor)


def _jpeg_encode(array: Array, quality: int = 75) -> bytes:
    import simplejpeg

    kind, sampling = ("GRAY", "GRAY") if array.ndim == 2 else ("RGB", "420")
    whole = np.ascontiguousarray(array).reshape(*array.shape[:2], -1)
    return bytes(simplejpeg.encode_jpeg(whole, quality, colorspace=kind, colorsubsampling=sampling))


def _jpeg_decode(tensor: Tensor) -> Array:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(tensor.data)
        shapes = {(height, width): "GRAY", (height, width, 3): "RGB"}
        if tensor.dtype != "uint8" or tensor.shape not in shapes:
            raise ValueError(f"a picture of {width}x{height} is not of shape {tensor.shape}")
        kind = shapes[tensor.shape]
        pixels = np.asarray(simplejpeg.decode_jpeg(tensor.data, colorspace=kind))
        return pixels.reshape(tensor.shape)
    except ValueError as error:
        raise ValueError(f"jpeg: {error}") from None


def _webp_encode(array: Array, quality: int = 75) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "WEBP", quality=quality)
    return stream.getvalue()


def _webp_decode(tensor: Tensor) -> Array:
    """Simple lossy files alone, whose size stands in the head (RFC 9649, sections 2.5 and 2.6).

    Pillow takes memory for the size that a file says it has, so that is read here first.
    """
    from PIL import Image

    head = bytes(tensor.data[:30])
    if len(head) < 30 or (head[:4], head[8:16]) != (b"RIFF", b"WEBPVP8 "):
        raise ValueError("webp: no simple lossy picture")
    width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:]))
    if tensor.dtype != "uint8" or (height, width, 3) != tensor.shape:
        raise ValueError(f"webp: a picture of {width}x{height} is not of shape {tensor.shape}")
    try:
        with Image.open(io.BytesIO(tensor.data), formats=("WEBP",)) as image:
            array = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"webp: {error}") from None
    if array.shape != tensor.shape:
        raise ValueError(f"webp: the file holds {array.shape}, not {tensor.shape}")
    return array


CODECS: dict[str, tuple[Callable[..., bytes | memoryview], Callable[[Tensor], Array]]] = {
    "raw": (_raw_encode, _raw_decode),
    "lz4": (_lz4_encode, _lz4_decode),
    "zstd": (_zstd_encode, _zstd_decode),
    "lzw": (_lzw_encode, _lzw_decode),
    "jpeg": (_jpeg_encode, _jpeg_decode),
    "webp": (_webp_encode, _webp_decode),
}


def encode(array: Array, codec: str = "raw", **options: int) -> Tensor:
    """`array` coded by `codec`.

    "jpeg" and "webp": uint8 [H, W, 3], lossy, `quality` 1-100, 4:2:0; "webp" needs Pillow, "jpeg"
    takes grey [H, W] too.
    "raw" copies nothing: the tensor is a view of the array.
    """
    data = CODECS[codec][0](array, **options)
    return Tensor(data, str(array.dtype), array.shape, codec)


def decode(tensor: Tensor) -> Array:
    """The array in `tensor`; a view for "raw". Raises ValueError if the bytes do not hold it."""
    if tensor.codec not in CODECS:
        raise ValueError(f"unknown codec {tensor.codec!r}")
    return CODECS[tensor.codec][1](tensor)
