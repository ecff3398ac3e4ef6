"""The device's own small model: what answers when there is no server.

Seven plain convolutions on the frame at half size, small enough for a few milliseconds on one
slow core and for a bundle under a megabyte. ``profiles.export`` writes it as ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos

SIDE = 112
LAYERS = ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1), (64, 80, 2), (80, 80, 1), (80, 80, 1))
"""Input channels, output channels and stride of each 3x3 convolution."""


class LocalNet(nn.Module):
    """Half-size frames [b, 3, 112, 112] in [0, 1] to logits [b, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in LAYERS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in LAYERS)
        self.head = nn.Linear(LAYERS[-1][1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class. A layer that keeps its shape has a shortcut around it."""
        x = x * 4 - 2
        for (inputs, outputs, stride), conv, norm in zip(
            LAYERS, self.convs, self.norms, strict=True
        ):
            y = F.relu(norm(conv(x)))
            x = x + y if inputs == outputs and stride == 1 else y
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def halve(frames: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 frames [n, 224, 224, 3] to float32 [n, 3, 112, 112] in [0, 1], by 2x2 means."""
    x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(x, 2)


Batch = tuple[Tensor, Tensor, Tensor | None]
"""Frames [b, 3, 112, 112], labels [b], and a teacher's logits [b, classes] if there is one."""


def train(
    classes: int,
    batches: Callable[[Tick], Batch],
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[LocalNet, float]:
    """A trained network and the seconds it took; distilled where the batches have a teacher."""
    torch.manual_seed(seed)
    model = LocalNet(classes)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        frames, labels, taught = batches(tick)
        logits = model(frames)
        value = F.cross_entropy(logits, labels)
        if taught is not None:
            soft = F.kl_div(
                F.log_softmax(logits, 1), F.softmax(taught.float(), 1), reduction="batchmean"
            )
            value = 0.3 * value + 2.0 * soft
        return value, {
            "loss": float(value.detach()),
            "right": float((logits.argmax(1) == labels).float().mean()),
        }

    recipe = Recipe(lr=4e-3, batch=64, weight_decay=0.02, warmup=0.1, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="local",
    )  # fmt: skip
    return model, seconds


@torch.no_grad()
def accuracy(model: LocalNet, photos: Photos) -> float:
    """Top-1 accuracy on whole frames."""
    model.eval()
    right = 0
    for start in range(0, len(photos), 100):
        logits = model(halve(photos.frames[start : start + 100]))
        right += int((logits.argmax(1).numpy() == photos.labels[start : start + 100]).sum())
    return right / len(photos)
