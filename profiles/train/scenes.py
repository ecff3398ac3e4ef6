"""Rendered sign scenes as arrays, with a label for every patch, kept in the user's cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from profiles.train import signs
from profiles.train.photos import Photos, cache_dir

PATCH = 16
GRID = signs.SIDE // PATCH
BACKGROUND = len(signs.CLASSES)
"""Label of a patch that shows no sign."""


@dataclass(frozen=True)
class Scenes(Photos):
    """Frames and labels, and ``cells`` int64 [n, 196]: the class each patch shows."""

    cells: npt.NDArray[np.int64]


def cells_of(label: int, box: signs.Box) -> npt.NDArray[np.int64]:
    """Per patch, ``label`` where the sign's box covers at least a quarter of it [196]."""
    edges = np.arange(GRID) * PATCH
    left, top, right, bottom = box
    across = (np.minimum(edges + PATCH, right) - np.maximum(edges, left)).clip(0)
    down = (np.minimum(edges + PATCH, bottom) - np.maximum(edges, top)).clip(0)
    share = (down[:, None] * across[None, :]) / PATCH**2
    return np.where(share.reshape(-1) >= 0.25, label, BACKGROUND).astype(np.int64)


def load(seeds: range) -> Scenes:
    """The scenes of ``seeds``, rendered once for as long as the renderer gives the same pixels."""
    sample = b"".join(signs.render(seed)[0].tobytes() for seed in seeds[:3])
    digest = hashlib.sha256(f"{seeds}".encode() + sample).hexdigest()
    stem = cache_dir() / f"signs-{digest[:16]}"
    frames_path, table_path = stem.with_suffix(".frames.npy"), stem.with_suffix(".npz")
    if not table_path.exists():
        shape = (len(seeds), signs.SIDE, signs.SIDE, 3)
        store = np.lib.format.open_memmap(frames_path, mode="w+", dtype=np.uint8, shape=shape)
        labels, cells = [], []
        for place, seed in enumerate(tqdm(seeds, desc="render", mininterval=5)):
            store[place], label, box = signs.render(seed)
            labels.append(label)
            cells.append(cells_of(label, box))
        store.flush()
        np.savez(table_path, labels=np.array(labels), cells=np.stack(cells))
    frames = cast(npt.NDArray[np.uint8], np.load(frames_path, mmap_mode="r"))
    table = np.load(table_path)
    return Scenes(frames, table["labels"], table["cells"])
