"""Exits for a vision transformer: a norm and a classifier on the class token behind each layer.

As DeeBERT (Xin et al. 2020) fits them to a finished model: the transformer stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ExitsConfig:
    """``layers`` exits behind the first layers of a model of width ``dim``."""

    dim: int
    layers: int
    classes: int
    eps: float = 1e-6


class Exits(nn.Module):
    """See the module's text. ``forward`` is the exit behind one layer, counted from 1."""

    def __init__(self, config: ExitsConfig) -> None:
        super().__init__()
        self.config = config
        count = range(config.layers)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim, eps=config.eps) for _ in count)
        self.heads = nn.ModuleList(nn.Linear(config.dim, config.classes) for _ in count)

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """Tokens [b, 1+n, dim], class token first, to logits [b, classes]."""
        x = self.norms[layer - 1](tokens[:, 0])
        return self.heads[layer - 1](x)  # type: ignore[no-any-return]
