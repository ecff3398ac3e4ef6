"""A small residual network, the teacher of a profile's ViT and of its device model.

He et al. 2016, with four stages at strides 4, 8, 16 and 32. It is a means of training and is
never served; its stride-16 map has one cell per 16x16 patch, which is what a patch token of the
student is asked to predict.
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

WIDTHS = (48, 96, 192, 384)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            pool: nn.Module = nn.AvgPool2d(stride, ceil_mode=True) if stride != 1 else nn.Identity()
            self.shortcut = nn.Sequential(
                pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, inputs, h, w] to [b, outputs, h/stride, w/stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Teacher(nn.Module):
    """Frames [b, 3, h, w] in [0, 1] to logits [b, classes]; h and w are multiples of 16."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, a, 3, 2, 1, bias=False),
            nn.BatchNorm2d(a),
            nn.ReLU(),
        )
        self.stage1 = nn.Sequential(Block(a, a, 1))
        self.stage2 = nn.Sequential(Block(a, b, 2), Block(b, b, 1))
        self.stage3 = nn.Sequential(Block(b, c, 2), Block(c, c, 1))
        self.stage4 = nn.Sequential(Block(c, d, 2), Block(d, d, 1))
        self.head = nn.Linear(d, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, classes] and the stride-16 map [b, 192, h/16, w/16]."""
        x = (x - self.mean) / self.std
        grid = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.head(self.stage4(grid).mean((2, 3))), grid


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
