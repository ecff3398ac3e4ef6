"""A small residual network, the teacher of a profile's ViT and of its device model.

Its stride-16 map has one cell per 16x16 patch, which is what a patch token of the student is asked
to predict.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train import augment
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos, load, split_off
from server.models.cnn import Cnn, CnnConfig

WIDTHS = (48, 96, 192, 384)


class Teacher(Cnn):
    """The network of ``server.models.cnn`` at its usual size."""

    def __init__(self, classes: int) -> None:
        super().__init__(CnnConfig(classes, WIDTHS))


def to_tensor(frames: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 frames [n, h, w, 3] as float32 [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float() / 255


@torch.no_grad()
def accuracy(model: nn.Module, photos: Photos, side: int, batch: int = 100) -> float:
    """Top-1 accuracy of the teacher on whole frames resized to ``side`` pixels."""
    model.eval()
    right = 0
    for start in range(0, len(photos), batch):
        frames = augment.central(photos.frames[start : start + batch], side)
        logits, _ = model(to_tensor(frames))
        right += int((logits.argmax(1).numpy() == photos.labels[start : start + batch]).sum())
    return right / len(photos)


def side_at(progress: float) -> int:
    """Side of the training crops: small first, since early epochs need no detail."""
    return 96 if progress < 0.45 else (112 if progress < 0.75 else 128)


def train(
    data: tuple[Path, ...], out: Path, budget: Budget, seed: int, resume: bool
) -> dict[str, float]:
    """Train the teacher on ``data``; writes ``out``/teacher.pt and returns what it measured."""
    photos = load(data, "train")
    chosen, held = split_off(photos)
    torch.manual_seed(seed)
    model = Teacher(int(photos.labels.max()) + 1)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        places = chosen[tick.indices]
        low = 0.35 if tick.progress < 0.75 else 0.25
        side = side_at(tick.progress)
        frames = augment.random_crops(tick.rng, photos.frames[places], side, (low, 1.0))
        labels = torch.from_numpy(photos.labels[places])
        logits, _ = model(to_tensor(frames))
        value = F.cross_entropy(logits, labels, label_smoothing=0.1)
        return value, {
            "loss": float(value.detach()),
            "right": float((logits.argmax(1) == labels).float().mean()),
        }

    recipe = Recipe(lr=3e-3, batch=64, weight_decay=0.05, warmup=0.15, ema=0.998)
    seconds = fit(
        model, loss, recipe, budget, len(chosen), seed=seed, resume=resume,
        checkpoint=out / "teacher.ckpt", title="teacher",
    )  # fmt: skip
    torch.save(model.state_dict(), out / "teacher.pt")
    found = accuracy(model, photos.take(held), 144)
    return {"seconds": round(seconds), "held_out_top1": found}
