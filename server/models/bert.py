"""A BERT encoder with exits: a classifier behind some of its layers, as DeeBERT and SplitEE have.

Devlin et al., "BERT", NAACL 2019: post-norm layers over words, positions and token types. Its
parameters are named as in transformers' files (without their "bert." in front), so that a published
checkpoint loads as it is; ``exits.K`` are ours. ``pool`` says what an exit looks at: "cls" is the
published head, the first token through a dense layer and tanh; "mean", for small models trained
from nothing, is the mean of the sentence's tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BertConfig:
    """Shape of a model. The defaults are BERT-base's; BERT-large: 1024, 24, 16, 4096.

    ``exits``: the layers, counted from 1, behind which there is a classifier besides the last.
    ``classes`` 0: the encoder alone, as a pretrained checkpoint has it. ``types``: token types.
    """

    vocabulary: int = 30522
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    types: int = 2
    classes: int = 2
    exits: tuple[int, ...] = ()
    pool: str = "cls"
    eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool is {self.pool!r}, not cls or mean")
        if any(not 0 < exit < self.depth for exit in self.exits):
            raise ValueError(f"exits {self.exits} are not all from 1 to {self.depth - 1}")


class Embeddings(nn.Module):
    """Words, positions and token types."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.dim)
        self.position_embeddings = nn.Embedding(config.positions, config.dim)
        self.token_type_embeddings = nn.Embedding(config.types, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.eps)
        self.dropout = config.dropout

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [b, n] to [b, n, dim]; all tokens are of the first type."""
        x = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        x = self.LayerNorm(x + self.token_type_embeddings.weight[0])
        return F.dropout(x, self.dropout, self.training)


class SelfAttention(nn.Module):
    """Multi-head self-attention, before its output layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[b, n, dim] to the same; ``mask`` bool [b, 1, 1, n] tells tokens from padding."""
        b, n, dim = x.shape
        q, k, v = (
            layer(x).view(b, n, self.heads, dim // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return y.transpose(1, 2).reshape(b, n, dim)


class Output(nn.Module):
    """A linear layer, added to what went around it, and normalised."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        """[..., inputs] and [..., dim] to [..., dim]."""
        y = F.dropout(self.dense(x), self.dropout, self.training)
        return self.LayerNorm(y + around)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with its output layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.dim, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[b, n, dim] to the same."""
        return self.output(self.self(x, mask), x)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    """The wide layer, with a GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., hidden]."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One post-norm layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.hidden, config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[b, n, dim] to the same; ``mask`` as in ``SelfAttention``."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.depth))


class Pooler(nn.Module):
    """The first token through a dense layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, dim] to [b, dim]."""
        return torch.tanh(self.dense(x[:, 0]))


class Exit(nn.Module):
    """A classifier behind a layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        if config.pool == "cls":
            self.pooler = Pooler(config.dim)
        self.classifier = nn.Linear(config.dim, config.classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [b, n, dim] to logits [b, classes]; ``mask`` as in ``SelfAttention``."""
        if hasattr(self, "pooler"):
            x = self.pooler(x)
        elif mask is None:
            x = x.mean(1)
        else:
            weight = mask[:, 0, 0, :, None].to(x.dtype)
            x = (x * weight).sum(1) / weight.sum(1)
        return self.classifier(F.dropout(x, self.dropout, self.training))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """See the module's text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.exits = nn.ModuleDict()
        if config.classes:
            last = Exit(config)  # under transformers' names
            if config.pool == "cls":
                self.pooler = last.pooler
            self.classifier = last.classifier
            self.exits.update({str(layer): Exit(config) for layer in config.exits})
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def run(self, x: Tensor, first: int, last: int, mask: Tensor | None = None) -> Tensor:
        """Layers ``first`` + 1 to ``last`` on tokens [b, n, dim] that ``first`` have seen."""
        for layer in self.encoder.layer[first:last]:
            x = layer(x, mask)
        return x

    def classify(self, x: Tensor, layer: int, mask: Tensor | None = None) -> Tensor:
        """Logits [b, classes] of tokens [b, n, dim] behind ``layer``, an exit or the last."""
        if layer != self.config.depth:
            return self.exits[str(layer)](x, mask)  # type: ignore[no-any-return]
        # The last exit's parts have their published names, so there is no module to call.
        return Exit.forward(self, x, mask)  # type: ignore[arg-type]

    @property
    def dropout(self) -> float:
        """Share dropped before the last classifier in training."""
        return self.config.dropout

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Logits [b, classes] of every exit in order, the last layer's last; ``ids`` as int64."""
        x, out = self.embeddings(ids), []
        for place, layer in enumerate(self.encoder.layer, start=1):
            x = layer(x, mask)
            if place in self.config.exits or place == self.config.depth:
                out.append(self.classify(x, place, mask))
        return out


_LEFT_OUT = re.compile(r"^cls\.|embeddings\.position_ids$")


def from_transformers(
    tensors: Mapping[str, Tensor], wanted: Iterable[str] = ()
) -> dict[str, Tensor]:
    """A published checkpoint's tensors under our names.

    Left out: the heads of pretraining, and a pooler or classifier that is not ``wanted``.
    """
    out, kept = {}, set(wanted)
    for name, value in tensors.items():
        name = name.removeprefix("bert.")
        # As converted from TensorFlow.
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if _LEFT_OUT.search(name):
            continue
        if name.startswith(("pooler.", "classifier.")) and kept and name not in kept:
            continue
        out[name] = value.float()
    return out
