"""Patches of a frame: the index convention lives here.

A frame uint8 [H, W, 3] is a grid of H/p x W/p patches, numbered row by row from the top left.
A patch is a vector (row, column, channel), channel fastest, of p*p*3 items. A patch set is a
bitmap, patch 0 in the lowest bit of the first byte: 25 bytes for 196 patches.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

U8 = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.intp]


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises ConfigError if the frame is not a whole grid."""
    if patch <= 0 or height % patch or width % patch or not height or not width:
        raise ConfigError(f"a frame of {width}x{height} is no whole grid of {patch}-pixel patches")
    return height // patch, width // patch


@cache
def _row_table(height: int, width: int, patch: int) -> npt.NDArray[np.intp]:
    """[patches, p]: where each pixel row of each patch lies among the frame's p-pixel rows."""
    rows, columns = grid(height, width, patch)
    by_pixel_row = np.arange(height * columns).reshape(rows, patch, columns)
    return np.ascontiguousarray(by_pixel_row.transpose(0, 2, 1).reshape(rows * columns, patch))


def take(frame: U8, indices: Indices, patch: int) -> U8:
    """The patches [K, p*p*3] of `frame` [H, W, 3] at `indices` [K], in that order.

    Each p-pixel row is gathered as one item, several times faster than pixel by pixel.
    """
    height, width, channels = frame.shape
    table = _row_table(height, width, patch)
    row_bytes = patch * channels
    rows = np.ascontiguousarray(frame).reshape(-1).view(f"V{row_bytes}")
    taken = rows.take(table[indices])
    return taken.view(np.uint8).reshape(len(indices), patch * row_bytes)


def patchify(frame: U8, patch: int) -> U8:
    """All patches [N, p*p*3] of `frame` [H, W, 3]."""
    rows, columns = grid(frame.shape[0], frame.shape[1], patch)
    return take(frame, np.arange(rows * columns), patch)


def unpatchify(patches: U8, height: int, width: int, patch: int) -> U8:
    """The frame [H, W, 3] whose patches are `patches` [N, p*p*3]."""
    rows, columns = grid(height, width, patch)
    tiles = patches.reshape(rows, columns, patch, patch, -1)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(height, width, -1))


def sample(count: int, total: int, random: np.random.Generator) -> Indices:
    """`count` of `total` patches drawn without replacement, ascending (A-MOT, section 4.2)."""
    return np.sort(random.permutation(total)[:count])


def pack(indices: Indices, total: int) -> bytes:
    """The bitmap of the patch set `indices` out of `total`."""
    present = np.zeros(total, dtype=np.bool_)
    present[indices] = True
    return np.packbits(present, bitorder="little").tobytes()


def unpack(bitmap: bytes | bytearray | memoryview, total: int) -> Indices:
    """The patches of a bitmap, ascending. Raises ValueError if it is not a set out of `total`."""
    if len(bitmap) != (total + 7) // 8:
        raise ValueError(f"a bitmap of {total} patches has {(total + 7) // 8} bytes")
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")
    if bits[total:].any():
        raise ValueError(f"the bitmap names a patch beyond {total}")
    return np.flatnonzero(bits)


def mosaic_grid(count: int) -> tuple[int, int]:
    """Rows and columns of the mosaic that holds `count` patches: near square, last row padded."""
    columns = max(1, int(np.ceil(np.sqrt(count))))
    return -(-count // columns), columns


def mosaic(patches: U8, patch: int) -> U8:
    """Tile `patches` [K, p*p*3] row by row into one picture [h, w, 3]; the last one fills up.

    With p = 16 a patch is exactly one MCU of a 4:2:0 JPEG, so coding the picture mixes no two
    patches.
    """
    count = len(patches)
    if not count:
        raise ValueError("a mosaic needs at least one patch")
    rows, columns = mosaic_grid(count)
    full = patches[np.minimum(np.arange(rows * columns), count - 1)]
    return unpatchify(full, rows * patch, columns * patch, patch)


def unmosaic(picture: U8, count: int, patch: int) -> U8:
    """The `count` patches [count, p*p*3] tiled in `picture`. Raises ValueError on a wrong size."""
    rows, columns = mosaic_grid(count)
    if picture.shape != (rows * patch, columns * patch, 3):
        raise ValueError(f"a mosaic of {count} patches is not of shape {picture.shape}")
    return patchify(picture, patch)[:count]
