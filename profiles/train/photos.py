"""Photographs in the public Imagenette layout, as one uint8 array per split.

A data set is a tar file or a folder that holds ``<split>/<wnid>/*.JPEG``. Decoded frames are kept
in the user's cache, never in the repository: decoding ten thousand photographs takes longer than
reading them back, and every stage of the training starts with it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Folder name to human name, in class order (the order of the folder names)."""

HELD_OUT = 500
"""Training photographs kept from every training run, to choose settings on."""


@dataclass(frozen=True)
class Photos:
    """Frames uint8 [n, side, side, 3] and their labels int64 [n]."""

    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> Photos:
        """The photographs at ``indices`` (a copy)."""
        return Photos(self.frames[indices], self.labels[indices])


def cache_dir() -> Path:
    """Where derived data may be kept: ``OFFBOARD_CACHE``, or ``~/.cache/offboard``."""
    root = os.environ.get("OFFBOARD_CACHE")
    path = Path(root) if root else Path.home() / ".cache" / "offboard"
    path.mkdir(parents=True, exist_ok=True)
    return path


def load(sources: Sequence[Path], split: str, side: int = 224) -> Photos:
    """All photographs of ``split`` ("train" or "val"), ``side`` pixels square.

    They come from the first of ``sources`` that has any. Raises ValueError if none has, and
    OSError if one cannot be read.
    """
    for source in sources:
        stat = source.stat()
        key = f"{source.resolve()}|{stat.st_size}|{int(stat.st_mtime)}|{split}|{side}"
        stem = cache_dir() / f"photos-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        frames_path, labels_path = stem.with_suffix(".frames.npy"), stem.with_suffix(".labels.npy")
        if labels_path.exists() or _decode(source, split, side, frames_path, labels_path):
            frames = cast(npt.NDArray[np.uint8], np.load(frames_path, mmap_mode="r"))
            return Photos(frames, np.load(labels_path))
    names = ", ".join(str(source) for source in sources)
    raise ValueError(f"{names}: no photographs under {split}/<wnid>/*.JPEG")


def split_off(photos: Photos, count: int = HELD_OUT) -> tuple[npt.NDArray[np.int64], ...]:
    """Indices (training, held out) of one fixed split.

    ``count`` photographs are held out, or a fifth of a set too small for that.
    """
    count = min(count, len(photos) // 5)
    order = np.random.default_rng(20240501).permutation(len(photos))
    return np.sort(order[count:]), np.sort(order[:count])


def _decode(source: Path, split: str, side: int, frames_path: Path, labels_path: Path) -> bool:
    """Write the arrays of one source; False if it has no photograph of ``split``."""
    order = sorted(IMAGENETTE)
    found: list[tuple[str, int, npt.NDArray[np.uint8]]] = []
    for name, blob in _files(source, split):
        wnid = Path(name).parent.name
        if wnid not in IMAGENETTE:
            raise ValueError(f"{source}: {name}: {wnid!r} is not an Imagenette class")
        with Image.open(io.BytesIO(blob)) as image:
            frame = np.asarray(_square(image.convert("RGB"), side))
        found.append((name, order.index(wnid), frame))
    if not found:
        return False
    found.sort(key=lambda item: Path(item[0]).name)
    labels = np.array([label for _, label, _ in found], dtype=np.int64)
    part = frames_path.with_suffix(".part.npy")
    np.save(part, np.stack([frame for _, _, frame in found]))
    part.replace(frames_path)
    np.save(labels_path, labels)
    return True


def _square(image: Image.Image, side: int) -> Image.Image:
    """The central square of ``image``, resized to ``side`` pixels if it is another size."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _files(source: Path, split: str) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*.JPEG")):
            if path.parent.parent.name == split:
                yield str(path), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.suffix == ".JPEG" and path.parent.parent.name == split:
                handle = archive.extractfile(member)
                if handle is not None:
                    yield member.name, handle.read()
