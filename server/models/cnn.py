"""A small residual network that classifies pictures (He et al. 2016), at strides 4, 8, 16 and 32.

It is the teacher of a profile's other models, and where it is served, the backbone behind a codec:
it can be cut before any of its stages, and its layers are at hand one by one, so that a codec can
be trained on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
POINTS = ("input", "block-1", "block-2", "block-3", "block-4")
"""Where it can be cut: before the stem, and before each stage."""


@dataclass(frozen=True)
class CnnConfig:
    """Shape of a model: classes, and the channels and blocks of its four stages.

    `shrink`: of how many pixels to a side it takes the mean first; 2 quarters what it looks at.
    """

    classes: int
    widths: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (1, 2, 2, 2)
    shrink: int = 1

    def __post_init__(self) -> None:
        if len(self.widths) != 4 or len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError("widths and depths are the channels and blocks of four stages")
        if self.shrink < 1:
            raise ValueError("shrink is 1 or more")


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


class Cnn(nn.Module):
    """Pictures [b, 3, h, w] in [0, 1] to logits [b, classes].

    h and w are multiples of 16 times `shrink`.
    """

    points = POINTS

    mean: Tensor
    std: Tensor

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c, d = config.widths
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
        self.stage1 = _stage(a, a, 1, config.depths[0])
        self.stage2 = _stage(a, b, 2, config.depths[1])
        self.stage3 = _stage(b, c, 2, config.depths[2])
        self.stage4 = _stage(c, d, 2, config.depths[3])
        self.head = nn.Linear(d, config.classes)

    def before(self, x: Tensor, point: str) -> Tensor:
        """What lies at `point` of pictures [b, 3, h, w] in [0, 1]: a map [b, features, h', w']."""
        if self.config.shrink > 1:
            x = F.avg_pool2d(x, self.config.shrink)
        for stage in self._stages()[: POINTS.index(point)]:
            x = stage(x)
        return x

    def behind(self, x: Tensor, point: str) -> list[Tensor]:
        """Every layer's map from what lies at `point` on, and last the logits [b, classes]."""
        maps = []
        for stage in self._stages()[POINTS.index(point) :]:
            x = stage(x)
            maps.append(x)
        return [*maps, self.head(x.mean((2, 3)))]

    def layers(self, x: Tensor) -> list[Tensor]:
        """The maps after the stem and each stage, and last the logits [b, classes]."""
        return self.behind(self.before(x, "input"), "input")

    def _stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (self._stem, self.stage1, self.stage2, self.stage3, self.stage4)

    def _stem(self, x: Tensor) -> Tensor:
        stemmed: Tensor = self.stem((x - self.mean) / self.std)
        return stemmed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, classes] and the stride-16 map [b, widths[2], h/16, w/16]."""
        *_, grid, _, logits = self.layers(x)
        return logits, grid


def _stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(depth - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)
