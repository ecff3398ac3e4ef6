"""Trains the filter of DF: which patches of a frame are crucial.

Seven plain convolutions on the frame at half size. Where a data set marks its objects, they are
what is crucial; elsewhere it is where a trained model finds the evidence of its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train.local import halve
from profiles.train.loop import Budget, Recipe, Tick, fit

LAYERS = (
    (3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 64, 1), (64, 64, 1),
)  # fmt: skip
"""Input channels, output channels and stride of each 3x3 convolution."""

U8 = npt.NDArray[np.uint8]


class Filter(nn.Module):
    """Half-size frames [b, 3, h/2, w/2] in [0, 1] to a logit per patch [b, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in LAYERS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in LAYERS)
        self.head = nn.Conv2d(LAYERS[-1][1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class. A layer that keeps its shape has a shortcut around it."""
        x = x * 4 - 2
        for (inputs, outputs, stride), conv, norm in zip(
            LAYERS, self.convs, self.norms, strict=True
        ):
            y = F.relu(norm(conv(x)))
            x = x + y if inputs == outputs and stride == 1 else y
        return self.head(x).flatten(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Marked:
    """Frames uint8 [n, h, w, 3], and which of their patches are crucial, bool [n, N]."""

    frames: U8
    crucial: npt.NDArray[np.bool_]


Batches = Callable[[Tick], tuple[Tensor, Tensor]]
"""Half-size frames [b, 3, h/2, w/2] in [0, 1], and which patches are crucial, bool [b, N]."""


def train(
    batches: Batches, samples: int, checkpoint: Path, budget: Budget, seed: int, resume: bool
) -> tuple[Filter, float]:
    """A trained filter and the seconds it took."""
    torch.manual_seed(seed)
    model = Filter()

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        frames, crucial = batches(tick)
        value = F.binary_cross_entropy_with_logits(model(frames), crucial.float())
        return value, {"loss": float(value.detach())}

    recipe = Recipe(lr=4e-3, batch=64, weight_decay=0.02, warmup=0.1, ema=0.99)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="df",
    )  # fmt: skip
    return model, seconds


def batches_of(data: Marked) -> Batches:
    """Batches of ``data``, half of the frames mirrored."""
    grid = round(data.crucial.shape[1] ** 0.5)

    def batch(tick: Tick) -> tuple[Tensor, Tensor]:
        frames = halve(data.frames[tick.indices])
        crucial = torch.from_numpy(data.crucial[tick.indices]).view(-1, grid, grid)
        turned = torch.from_numpy(tick.rng.random(len(frames)) < 0.5)
        frames[turned], crucial[turned] = frames[turned].flip(3), crucial[turned].flip(2)
        return frames, crucial.flatten(1)

    return batch


def highest(scores: Tensor, share: float) -> Tensor:
    """Which of each row of ``scores`` [b, N] are the ``share`` of highest ones, bool [b, N]."""
    best = scores.topk(round(share * scores.shape[1]), 1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


@torch.no_grad()
def overlap(model: Filter, data: Marked) -> float:
    """Mean share of a frame's crucial patches among as many that the filter ranks highest."""
    found = []
    for start in range(0, len(data.frames), 50):
        logits = model(halve(data.frames[start : start + 50]))
        for row, marked in zip(logits, data.crucial[start : start + 50], strict=True):
            best = row.topk(max(1, int(marked.sum()))).indices.numpy()
            found.append(float(marked[best].mean()))
    return float(np.mean(found))
