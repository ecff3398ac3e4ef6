"""A small residual network that classifies pictures (He et al. 2016), at strides 4, 8, 16 and 32.

It is the teacher of a profile's other models, and where it is served, the backbone behind a codec:
its layers are at hand one by one, so that a codec can be trained on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CnnConfig:
    """Shape of a model: classes, and the channels of its four stages."""

    classes: int
    widths: tuple[int, ...] = (48, 96, 192, 384)

    def __post_init__(self) -> None:
        if len(self.widths) != 4:
            raise ValueError("widths are the channels of four stages")


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
    """Pictures [b, 3, h, w] in [0, 1] to logits [b, classes]; h and w are multiples of 16."""

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
        self.stage1 = nn.Sequential(Block(a, a, 1))
        self.stage2 = nn.Sequential(Block(a, b, 2), Block(b, b, 1))
        self.stage3 = nn.Sequential(Block(b, c, 2), Block(c, c, 1))
        self.stage4 = nn.Sequential(Block(c, d, 2), Block(d, d, 1))
        self.head = nn.Linear(d, config.classes)

    def layers(self, x: Tensor) -> list[Tensor]:
        """The maps after the stem and each stage, and last the logits [b, classes]."""
        maps = [self.stem((x - self.mean) / self.std)]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            maps.append(stage(maps[-1]))
        return [*maps, self.head(maps[-1].mean((2, 3)))]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, classes] and the stride-16 map [b, widths[2], h/16, w/16]."""
        *_, grid, _, logits = self.layers(x)
        return logits, grid
