"""A small super-resolution network, for the strategy that sends the frame at low resolution.

Residual blocks without normalisation on the small picture, then a sub-pixel convolution (Lim et
al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR Workshops 2017; Shi
et al., CVPR 2016). It predicts what bicubic upsampling lacks, so that with zero weights in its last
layer it *is* bicubic upsampling, and is resampled from there to any size asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SuperResConfig:
    """Shape of a model: channels, residual blocks, and the factor that it upsamples by."""

    width: int = 32
    blocks: int = 4
    factor: int = 2
    channels: int = 3

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.factor, self.channels) < 1:
            raise ValueError("width, blocks, factor and channels must be at least 1")


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, h, w] to the same shape."""
        grown: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + grown


class SuperResolution(nn.Module):
    """Upsamples pictures [b, 3, h, w] with pixel values in [0, 1]."""

    def __init__(self, config: SuperResConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.body = nn.Sequential(*(Block(config.width) for _ in range(config.blocks)))
        self.tail = nn.Conv2d(config.width, config.channels * config.factor**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, small: Tensor, height: int, width: int) -> Tensor:
        """The pictures at [b, 3, height, width]; as they are where they have that size."""
        if small.shape[2:] == (height, width):
            return small
        features = self.head(small - 0.5)
        detail = F.pixel_shuffle(self.tail(features + self.body(features)), self.config.factor)
        return resample(small, height, width) + resample(detail, height, width)

    @torch.no_grad()
    def restore(self, small: Tensor, height: int, width: int) -> Tensor:
        """As `forward`, cut to [0, 1]."""
        whole: Tensor = self(small, height, width)
        return whole.clamp_(0, 1)


def resample(pictures: Tensor, height: int, width: int) -> Tensor:
    """[b, c, h, w] to [b, c, height, width], bicubic with antialiasing."""
    return F.interpolate(pictures, (height, width), mode="bicubic", antialias=True)
