"""A small residual network that recognises a spoken word from log-mel features.

Convolutions over time alone, with the mel bands as channels (TC-ResNet, Choi et al., "Temporal
Convolution for Real-Time Keyword Spotting on Mobile Devices", Interspeech 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

POINTS = ("input", "block-1", "block-2", "block-3")
"""Where it can be cut: before the stem, and before each block."""
MEAN, STD = 0.23, 0.28
"""Of features in [0, 1]."""


@dataclass(frozen=True)
class RecogniserConfig:
    """Shape of a model: classes, mel bands, channels after the stem and each block.

    `kernel`: frames that a convolution spans. Every block halves the frames.
    """

    classes: int
    bands: int = 32
    widths: tuple[int, ...] = (32, 40, 48, 64)
    kernel: int = 5

    def __post_init__(self) -> None:
        if len(self.widths) != len(POINTS):
            raise ValueError("widths are the channels of the stem and three blocks")
        if self.kernel % 2 == 0:
            raise ValueError("kernel is odd")


class Block(nn.Module):
    """Two convolutions with batch norm, the first at half the frames, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, 2, kernel // 2, bias=False)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, 1, kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1, 2, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, t] to [b, outputs, t / 2]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.norm(self.shortcut(x)))


class Recogniser(nn.Module):
    """Features [b, bands, t] in [0, 1] to logits [b, classes]; t is a multiple of 8."""

    points = POINTS

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        self.config = config
        first, k = config.widths[0], config.kernel
        self.conv = nn.Conv1d(config.bands, first, k, 1, k // 2, bias=False)
        self.norm = nn.BatchNorm1d(first)
        self.blocks = nn.ModuleList(
            Block(a, b, k) for a, b in zip(config.widths, config.widths[1:], strict=False)
        )
        self.head = nn.Linear(config.widths[-1], config.classes)

    def before(self, x: Tensor, point: str) -> Tensor:
        """What lies at `point` of features [b, bands, t] in [0, 1]: [b, features, t']."""
        for stage in self._stages()[: POINTS.index(point)]:
            x = stage(x)
        return x

    def behind(self, x: Tensor, point: str) -> list[Tensor]:
        """Every layer's map from what lies at `point` on, and last the logits [b, classes]."""
        maps = []
        for stage in self._stages()[POINTS.index(point) :]:
            x = stage(x)
            maps.append(x)
        return [*maps, self.head(x.mean(2))]

    def layers(self, x: Tensor) -> list[Tensor]:
        """The maps after the stem and each block, and last the logits [b, classes]."""
        return self.behind(x, "input")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.layers(x)[-1]

    def _stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (self._stem, *self.blocks)

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv((x - MEAN) / STD)))
