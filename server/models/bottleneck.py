"""A classifier's tokens through a bottleneck: few small whole numbers per token, and back.

Matsubara et al., "BottleFit: Learning Compressed Representations in Deep Neural Networks for
Effective and Efficient Split Computing", WoWMoM 2022, section III: a frozen model is split early,
and an encoder and a decoder around the split make the features small enough to send. Here the
split lies between the classifier's embedding, which the device computes, and its first attention
block; the encoder is one linear map and a uniform quantiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.models.stem import Mixer


@dataclass(frozen=True)
class BottleneckConfig:
    """Shape: ``channels`` symbols of ``levels`` values for each of ``grid`` x ``grid`` tokens.

    ``dim`` is the classifier's; ``mixers`` are the decoder's layers.
    """

    dim: int
    channels: int
    levels: int
    mixers: int
    grid: int = 14
    eps: float = 1e-6


class Bottleneck(nn.Module):
    """Encoder and decoder. ``pos_embed`` holds the positions and, first, the class token."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        self.squeeze = nn.Linear(config.dim, config.channels)
        self.widen = nn.Linear(config.channels, config.dim)
        self.mixers = nn.ModuleList(Mixer(config.dim, config.eps) for _ in range(config.mixers))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.dim))

    def encode(self, x: Tensor) -> Tensor:
        """Tokens without positions [b, n, dim] to reals [b, channels, n] in [0, levels-1].

        The device rounds them.
        """
        return self.squeeze(x).transpose(1, 2).clamp(0, self.config.levels - 1)  # type: ignore[no-any-return]

    def decode(self, symbols: Tensor) -> Tensor:
        """Symbols float32 [b, channels, n] to tokens with positions [b, 1+n, dim]."""
        x = self.widen(symbols.transpose(1, 2))
        for mixer in self.mixers:
            x = mixer(x, None, self.config.grid)
        first = self.pos_embed[:, :1].expand(x.shape[0], -1, -1)
        return torch.cat((first, x + self.pos_embed[:, 1:]), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Both; rounding passes the gradient as if it were not there."""
        reals = self.encode(x)
        return self.decode(reals + (reals.round() - reals).detach())
