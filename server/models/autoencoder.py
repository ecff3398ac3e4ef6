"""A convolutional auto-encoder of both halves, the baseline Offload-AE+ of DeepCOD (section 6.2).

Mentzer et al., "Conditional Probability Models for Deep Image Compression", CVPR 2018, section 3.1:
strided 5x5 convolutions with residual blocks between them, scalar quantisation to learned centres,
and a mirrored decoder. Far smaller here, as the "+" has it: its authors' encoder was compressed
until it could run on a phone. Its decoder stops at half the input's resolution, which is what the
profile's backbone looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from server.models.deepcod import Quantizer


@dataclass(frozen=True)
class AutoEncoderConfig:
    """Shape: pictures of `size` to `channels` symbols of `levels` centres in each 8x8 pixels.

    `encoder`: features after its first two convolutions; `decoder`: after its first layer and each
    of its two transposed ones; `blocks`: residual blocks of each half.
    """

    size: tuple[int, int]
    channels: int = 8
    levels: int = 12
    encoder: tuple[int, int] = (32, 48)
    decoder: tuple[int, int, int] = (48, 32, 16)
    blocks: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if any(side % 8 for side in self.size) or not 2 <= self.levels <= 64:
            raise ValueError("size is two multiples of 8, levels are 2 to 64")

    @property
    def grid(self) -> tuple[int, int]:
        """Places that have symbols."""
        return self.size[0] // 8, self.size[1] // 8


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, h, w] to the same shape."""
        y: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + y


class AutoEncoder(nn.Module):
    """One encoder, quantiser and decoder."""

    def __init__(self, config: AutoEncoderConfig) -> None:
        super().__init__()
        self.config = config
        (a, b), (c, d, e) = config.encoder, config.decoder
        self.encoder = nn.Sequential(
            nn.Conv2d(3, a, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(a, b, 5, 2, 2),
            nn.ReLU(),
            *(Residual(b) for _ in range(config.blocks[0])),
            nn.Conv2d(b, config.channels, 5, 2, 2),
        )
        self.quantizer = Quantizer(config.levels)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, c, 3, padding=1),
            nn.ReLU(),
            *(Residual(c) for _ in range(config.blocks[1])),
            nn.ConvTranspose2d(c, d, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(d, e, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(e, 3, 3, padding=1),
            nn.Tanh(),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Pictures [b, 3, H, W] in [-1, 1] to symbols int64 [b, channels, H/8, W/8]."""
        return self.quantizer.indices(self.encoder(x))

    def decode(self, symbols: Tensor) -> Tensor:
        """Symbols int64 [b, channels, H/8, W/8] to pictures [b, 3, H/2, W/2] in [-1, 1]."""
        restored: Tensor = self.decoder(self.quantizer.centres[symbols])
        return restored

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For training: what `decode` gives of `x`, and the symbols' rate in bits each."""
        y, bits = self.quantizer(self.encoder(x))
        return self.decoder(y), bits
