"""Exits for a vision transformer: a norm and a classifier behind each layer.

As DeeBERT (Xin et al. 2020) fits them to a finished model: the transformer stays as it is. They
look at the class token and at the mean of the patches' tokens: behind the first layers the class
token alone knows little, since only the last layer's was ever asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, cat, nn


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
        self.norms = nn.ModuleList(nn.LayerNorm(2 * config.dim, eps=config.eps) for _ in count)
        self.heads = nn.ModuleList(nn.Linear(2 * config.dim, config.classes) for _ in count)

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """Tokens [b, 1+n, dim], class token first, to logits [b, classes]."""
        return self.classify(look(tokens), layer)

    def classify(self, seen: Tensor, layer: int) -> Tensor:
        """What `look` made of tokens, [b, 2 dim], to logits [b, classes]."""
        return self.heads[layer - 1](self.norms[layer - 1](seen))  # type: ignore[no-any-return]


def look(tokens: Tensor) -> Tensor:
    """What exits see of tokens [b, 1+n, dim]: the class token and the others' mean, [b, 2 dim]."""
    return cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1)
