"""The teacher's answers on a fixed set of random crops, computed once for every student.

A student then costs no teacher's forward pass. Kept per crop: the pixels, the logits, the
stride-16 feature map (one cell per patch of the student) and the class evidence per stride-32
cell, which is the head applied before the mean over places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from profiles.train import augment
from profiles.train.photos import Photos
from profiles.train.teacher import WIDTHS, Teacher, to_tensor

SIDE = 128
CROPS = 6
"""Crops per photograph."""
SCALE = (0.25, 1.0)
CLASSES = 10

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Answers:
    """What a teacher says of a batch. ``features`` [b, n, 192] are standardised per channel."""

    logits: Tensor
    features: Tensor
    evidence: Tensor
    """Logits per patch [b, n, classes], interpolated from the coarser cells."""


@torch.no_grad()
def ask(model: Teacher, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frames [b, 3, s, s] in [0, 1] to logits, stride-16 map and stride-32 evidence."""
    _, grid = model(x)
    deep = model.stage4(grid)
    evidence = F.conv2d(deep, model.head.weight[:, :, None, None], model.head.bias)
    return evidence.mean((2, 3)), grid, evidence


def per_patch(grid: Tensor, cells: int) -> Tensor:
    """A map [b, c, h, w] resampled to ``cells`` x ``cells`` and laid out as [b, cells^2, c]."""
    if grid.shape[-1] != cells:
        grid = F.interpolate(grid, (cells, cells), mode="bilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


class Scale:
    """Mean and deviation of each of the teacher's features over the crops of ``folder``."""

    def __init__(self, folder: Path) -> None:
        scale = np.load(folder / "scale.npz")
        self.mean = torch.from_numpy(scale["mean"])
        self.std = torch.from_numpy(scale["std"])

    def standardise(self, features: Tensor) -> Tensor:
        """Features [..., 192] with each channel at mean 0 and deviation 1."""
        return (features - self.mean) / self.std


class Lessons:
    """The stored crops of ``folder`` and the teacher's answers to them.

    All of it is read into memory (4 GB for ten thousand photographs): random reads of a memory
    map wait for the disk whenever its pages have been dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.crops = np.load(folder / "crops.npy")
        self.logits = np.load(folder / "logits.npy")
        self.maps = np.load(folder / "maps.npy")
        self.evidence = np.load(folder / "evidence.npy")
        self.scale = Scale(folder)

    def batch(
        self, places: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], Answers]:
        """One stored crop of each photograph in ``places`` (all of them flipped, or none)."""
        rows = places * CROPS + rng.integers(CROPS, size=len(places))
        step = -1 if rng.random() < 0.5 else 1
        frames = np.ascontiguousarray(self.crops[rows][:, :, ::step])
        maps, evidence = (
            torch.from_numpy(np.ascontiguousarray(store[rows][..., ::step])).float()
            for store in (self.maps, self.evidence)
        )
        cells = maps.shape[-1]
        return frames, Answers(
            torch.from_numpy(self.logits[rows]).float(),
            self.scale.standardise(per_patch(maps, cells)),
            per_patch(evidence, cells),
        )


@torch.no_grad()
def write(model: Teacher, photos: Photos, folder: Path, seed: int) -> None:
    """Crop every one of ``photos`` ``CROPS`` times and keep the answers in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    total, cells = len(photos) * CROPS, SIDE // 16
    crops = _store(folder / "crops.npy", (total, SIDE, SIDE, 3), np.uint8)
    logits = _store(folder / "logits.npy", (total, CLASSES), np.float16)
    maps = _store(folder / "maps.npy", (total, WIDTHS[2], cells, cells), np.float16)
    evidence = _store(folder / "evidence.npy", (total, CLASSES, cells // 2, cells // 2), np.float16)
    sums, squares = torch.zeros(WIDTHS[2]), torch.zeros(WIDTHS[2])
    rng = np.random.default_rng([seed, 3])
    for start in tqdm(range(0, len(photos), 20), desc="teach", mininterval=5):
        frames = np.repeat(photos.frames[start : start + 20], CROPS, axis=0)
        side = frames.shape[1]
        pieces = [augment.crop(f, augment.random_box(rng, side, SCALE), SIDE) for f in frames]
        rows = slice(start * CROPS, start * CROPS + len(pieces))
        crops[rows] = np.stack(pieces)
        said, grid, cam = ask(model, to_tensor(crops[rows]))
        logits[rows], maps[rows], evidence[rows] = (v.half().numpy() for v in (said, grid, cam))
        sums += grid.mean((2, 3)).sum(0)
        squares += grid.square().mean((2, 3)).sum(0)
    mean = sums / total
    std = (squares / total - mean.square()).clamp_min(1e-4).sqrt()
    for store in (crops, logits, maps, evidence):
        store.flush()
    np.savez(folder / "scale.npz", mean=mean.numpy(), std=std.numpy())


def _store(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
