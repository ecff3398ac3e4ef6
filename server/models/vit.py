"""A vision transformer over patches (Dosovitskiy et al. 2021), with timm's parameter names.

It works in patch space: ``patches`` is float32 [b, k, patch*patch*channels] with pixel values in
[0, 1], each patch in (row, column, channel) order. Any subset of a frame's patches is a valid
input when their places on the grid come with it. Beside the logits the model returns how much the
class token attends to each patch in the last block, which A-MOT uses to choose the patches of its
second round.

Two stems turn a patch into a token. "linear" is the published one. "local" convolves inside each
patch only, then lets neighbouring tokens that are present mix; it learns from far fewer pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.models.stem import LocalStem, Mixer

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a model. Sides in pixels; ``mean`` and ``std`` are per channel, for [0, 1] pixels.

    ``pool`` is what the head reads: "cls" (the class token after ``norm``) or "avg" (the mean of
    the patch tokens, then ``fc_norm``, as in MAE's fine-tuned models). ``stem_width`` and
    ``mixers`` shape the local stem and are ignored by the linear one.

    Of a clip, ``frames`` frames of ``image`` pixels square lie one below the other in the picture
    that the patches are of, and ``tubelet`` of them, one after another, make a token (2x16x16 in
    Feichtenhofer et al. 2022, "Masked Autoencoders As Spatiotemporal Learners").
    """

    dim: int
    depth: int
    heads: int
    classes: int
    image: int = 224
    patch: int = 16
    channels: int = 3
    mlp_ratio: float = 4.0
    stem: Literal["linear", "local"] = "linear"
    stem_width: int = 32
    mixers: int = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    eps: float = 1e-6
    pool: Literal["cls", "avg"] = "cls"
    frames: int = 1
    tubelet: int = 1

    def __post_init__(self) -> None:
        if self.image % self.patch or self.dim % self.heads:
            raise ValueError("image must be a multiple of patch, and dim of heads")
        if self.stem not in ("linear", "local") or self.pool not in ("cls", "avg"):
            raise ValueError(f"unknown stem {self.stem!r} or pool {self.pool!r}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError("mean and std need one value per channel")
        if self.frames < 1 or self.tubelet < 1 or self.frames % self.tubelet:
            raise ValueError("frames must be a multiple of tubelet")
        if self.frames > 1 and self.mixers:
            raise ValueError("mixers are for pictures: the tokens of a clip are no grid")

    @property
    def grid(self) -> int:
        """Patches along one side of the frame."""
        return self.image // self.patch

    @property
    def places(self) -> int:
        """Tokens of a whole frame or clip, without the class token."""
        return self.grid**2 * (self.frames // self.tubelet)

    @property
    def patch_size(self) -> int:
        """Values in one patch vector."""
        return self.patch * self.patch * self.channels


def from_mapping(kind: type[T], values: Mapping[str, Any]) -> T:
    """A config dataclass from parsed JSON (lists become tuples).

    Raises ValueError naming the keys that the config does not have.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class ViTOutput(NamedTuple):
    """``logits`` [b, classes]; ``attention`` [b, k]: of the class token to each patch given.

    The attention is the softmax row of the last block averaged over heads, without the class
    token's own column, so a row sums to less than one.
    """

    logits: Tensor
    attention: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with a joint query, key and value projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [b, n, d] to query, key and value, each [b, heads, n, d/heads]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens of the same shape."""
        q, k, v = self.split(x)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def forward_with_row(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the first token's softmax row averaged over heads, [b, n]."""
        q, k, v = self.split(x)
        row = (q[:, :, :1] @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        y = F.scaled_dot_product_attention(q, k, v)
        tokens = self.proj(y.transpose(1, 2).reshape(x.shape))
        return tokens, row.softmax(-1).mean(1).squeeze(1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, n, d] to tokens of the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def forward_with_row(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the first token's attention row [b, n]."""
        y, row = self.attn.forward_with_row(self.norm1(x))
        x = x + y
        return x + self.mlp(self.norm2(x)), row


class PatchEmbed(nn.Module):
    """One linear map per patch: a convolution whose kernel is its stride, as a matrix."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_size, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """[b, k, patch_size] to [b, k, dim]."""
        return self.proj(patches)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """The classifier. See the module's text for its input and ``ViTOutput`` for its output."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch * config.patch
        self.register_buffer("mean", torch.tensor(config.mean).repeat(pixels), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).repeat(pixels), persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.places, config.dim))
        self.patch_embed: PatchEmbed | LocalStem
        if config.stem == "linear":
            self.patch_embed = PatchEmbed(config.tubelet * config.patch_size, config.dim)
            self.mixers = nn.ModuleList()
        else:
            self.patch_embed = LocalStem(
                config.patch, config.tubelet * config.channels, config.stem_width, config.dim
            )
            self.mixers = nn.ModuleList(Mixer(config.dim, config.eps) for _ in range(config.mixers))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.mlp_ratio, config.eps)
            for _ in range(config.depth)
        )
        if config.pool == "cls":
            self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        else:
            self.fc_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.head = nn.Linear(config.dim, config.classes)
        self._init()

    def _init(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for part in (self.blocks, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

    def embed(self, patches: Tensor, indices: Tensor | None = None) -> Tensor:
        """Patches [b, k, patch_size] to tokens [b, 1+k, dim], class token first.

        ``indices`` int64 [b, k] are the patches' places, row by row on the grid; None means all of
        them in order. Of a clip there must be all, and they make k / tubelet tokens.
        """
        x = (patches - self.mean) / self.std
        if self.config.frames > 1:
            if indices is not None:
                raise ValueError("of a clip all patches are needed")
            x = self._tubelets(x)
        x = self.patch_embed(x)
        for mixer in self.mixers:
            x = mixer(x, indices, self.config.grid)
        places = self.pos_embed[:, 1:]
        if indices is not None:
            places = places[0][indices]
        head = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat((head, x + places), dim=1)

    def _tubelets(self, patches: Tensor) -> Tensor:
        """[b, frames * grid^2, patch_size] to [b, places, tubelet * patch_size].

        A tubelet is a vector (row, column, frame, channel), channel fastest.
        """
        c = self.config
        steps, pixels = c.frames // c.tubelet, c.patch**2
        x = patches.view(-1, steps, c.tubelet, c.grid**2, pixels, c.channels)
        return x.permute(0, 1, 3, 4, 2, 5).reshape(len(patches), c.places, -1)

    def forward_features(self, tokens: Tensor, done: int = 0) -> tuple[Tensor, Tensor]:
        """All blocks: tokens [b, 1+k, dim] to (tokens, attention [b, k]), before the last norm.

        ``done``: so many blocks, fewer than all, have seen the tokens.
        """
        for block in self.blocks[done:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        tokens, row = last.forward_with_row(tokens)
        return tokens, row[:, 1:]

    def forward_head(self, tokens: Tensor, size: Tensor | None = None) -> Tensor:
        """Tokens [b, 1+k, dim] from the last block to logits [b, classes].

        ``size`` [b, 1+k]: how many patches each token stands for; None: one each.
        """
        if self.config.pool == "cls":
            return self.head(self.norm(tokens[:, 0]))  # type: ignore[no-any-return]
        rest = tokens[:, 1:]
        if size is None:
            mean = rest.mean(1)
        else:
            weight = size[:, 1:, None]
            mean = (rest * weight).sum(1) / weight.sum(1)
        return self.head(self.fc_norm(mean))  # type: ignore[no-any-return]

    def forward(self, patches: Tensor, indices: Tensor | None = None) -> ViTOutput:
        """Classify frames from ``patches`` [b, k, patch_size] at ``indices`` (see ``embed``)."""
        tokens, attention = self.forward_features(self.embed(patches, indices))
        return ViTOutput(self.forward_head(tokens), attention)
