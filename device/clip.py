"""Clips to the frames a profile looks at: a folder of pictures, an .npz or an .mjpeg file.

Whatever length a clip has, as many frames as the models take are chosen, evenly apart; those in
between are not even decoded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device import picture
from device.splitter import Splitter
from device.strategy import Pixels

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))
ARRAYS = frozenset((".npz",))
STREAMS = frozenset((".mjpeg", ".mjpg"))
FILES = ARRAYS | STREAMS
HINT = "give --source clips:DIR, where every folder of pictures, .npz or .mjpeg file is a clip"


def load(path: Path, count: int, side: int) -> Pixels:
    """The clip at `path` as uint8 [count, side, side, 3].

    A folder's pictures are its frames by name; an .npz holds "frames" uint8 [n, H, W, 3]. Raises
    ValueError with a text for people if it is no clip, OSError if it cannot be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _decoded(frames_in(path), count, side)
    if suffix in ARRAYS:
        try:
            with np.load(path) as file:
                frames = file["frames"]
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError):
            raise ValueError('this .npz has no "frames" uint8 [n, H, W, 3]') from None
        return fit(frames, count, side)
    if suffix in STREAMS:
        splitter = Splitter()
        stored = splitter.feed(path.read_bytes())
        return _decoded([*stored, *filter(None, [splitter.rest()])], count, side)
    raise ValueError(f"{path.name} is no clip: {HINT}")


def fit(frames: npt.NDArray[Any], count: int, side: int) -> Pixels:
    """`frames` uint8 [n, H, W, 3] as uint8 [count, side, side, 3]. Raises ValueError if others."""
    if frames.ndim != 4 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"a clip is uint8 [n, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    chosen = [picture.fit(frames[place], side, side) for place in evenly(len(frames), count)]
    return np.stack(chosen)


def evenly(length: int, count: int) -> list[int]:
    """`count` places from the first of `length` to the last, repeated where there are fewer."""
    places = np.linspace(0, length - 1, count).round().astype(int)
    return [int(place) for place in places]


def frames_in(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def find(root: Path) -> list[Path]:
    """The clips at or below `root`, by name; none if there are none."""
    if root.is_file():
        return [root] if root.suffix.lower() in FILES else []
    if not root.is_dir():
        return []
    below = [path for path in root.rglob("*") if path.is_dir() or path.suffix.lower() in FILES]
    return [path for path in sorted([root, *below]) if path.is_file() or frames_in(path)]


def _decoded(frames: Sequence[bytes | Path], count: int, side: int) -> Pixels:
    if not frames:
        raise ValueError("there is no picture in this clip")
    return np.stack([picture.load(frames[i], side, side) for i in evenly(len(frames), count)])
