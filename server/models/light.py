"""A-MOT's light inference: the second round without recovering and classifying again.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4.4 and figure 10. The new patches alone go through the
classifier's own stem and first attention layers, which for so few tokens is cheap. What comes out
and the tokens that the first round had there go through a linear layer each, are added where they
stand at the same place (the class tokens with each other), and three attention layers of the
classifier's size and a head make the class. The classifier is not changed; only what is defined
here is trained.

The paper has both rounds' tokens from behind the classifier's last layer, and its three layers
learn from nothing. Here three layers of the classifier are left, and the three here begin as copies
of them: they know what to do with tokens from there, and the rounds meet that much earlier.

Where the first round recovered nothing it has tokens of the sent patches alone. The new patches
are others, so only the class tokens meet, and the rest stand side by side.

Nothing is computed that cannot reach the class: the last attention layer has one query, the class
token. The result is that of the whole layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.models.stem import Mixer
from server.models.vit import Block, VisionTransformer, ViTConfig

LAYERS = 3
"""Attention layers of the light inference (the paper's section 4.4)."""


@dataclass(frozen=True)
class LightConfig:
    """Shape of a model; ``dim``, ``heads`` and ``mlp_ratio`` are the classifier's.

    ``after``: both rounds' tokens are those behind so many of the classifier's layers.
    The paper's ablations (section 5.3.2) are ``layers`` 1 (one-attention), ``linear`` false
    (non-linear: added as they are) and ``first`` false (only-new: the first round's tokens are
    not used).
    """

    dim: int
    heads: int
    classes: int
    after: int
    layers: int = LAYERS
    mlp_ratio: float = 4.0
    linear: bool = True
    first: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.layers < 1 or self.after < 0:
            raise ValueError("dim must be a multiple of heads, layers at least 1, after 0 or more")


def for_classifier(vit: ViTConfig, layers: int = LAYERS) -> LightConfig:
    """The configuration beside a classifier of shape ``vit``: in place of its last ``layers``."""
    after = max(0, vit.depth - layers)
    return LightConfig(vit.dim, vit.heads, vit.classes, after, layers, vit.mlp_ratio, eps=vit.eps)


class ClassBlock(Block):
    """A transformer block of which only the first token is computed."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, n, d] to the first one [b, 1, d], as ``Block`` would give it."""
        b, _, d = x.shape
        attn = self.attn
        y = self.norm1(x)
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q = F.linear(y[:, :1], weight[:d], bias[:d])
        k, v = F.linear(y, weight[d:], bias[d:]).chunk(2, dim=-1)
        q, k, v = (
            part.view(b, -1, attn.heads, d // attn.heads).transpose(1, 2) for part in (q, k, v)
        )
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x[:, :1] + attn.proj(seen.transpose(1, 2).reshape(b, 1, d))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class LightInference(nn.Module):
    """See the module's text."""

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.dim, config.heads, config.mlp_ratio, config.eps)
        if config.linear:
            self.new = nn.Linear(config.dim, config.dim)
            if config.first:
                self.old = nn.Linear(config.dim, config.dim)
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(config.layers - 1))
        self.blocks.append(ClassBlock(*shape))
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.head = nn.Linear(config.dim, config.classes)

    @torch.no_grad()
    def start_from(self, vit: VisionTransformer) -> None:
        """Start as the classifier's last layers and head on the plain sum of both rounds' tokens.

        The linear layers begin as identities. Where the classifier has fewer attention layers, the
        first ones here begin as its first with a silent output: a residual layer that adds nothing
        passes on what it is given.
        """
        for linear in (self.get_submodule(name) for name in ("new", "old") if hasattr(self, name)):
            assert isinstance(linear, nn.Linear)
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        for place, block in enumerate(self.blocks, len(vit.blocks) - len(self.blocks)):
            assert isinstance(block, Block)
            block.load_state_dict(vit.blocks[max(0, place)].state_dict())
            for last in (block.attn.proj, block.mlp.fc2) if place < 0 else ():
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        norm = vit.norm if vit.config.pool == "cls" else vit.fc_norm
        self.norm.load_state_dict(norm.state_dict())
        self.head.load_state_dict(vit.head.state_dict())

    def forward(
        self, vit: VisionTransformer, new_patches: Tensor, new_indices: Tensor, first_tokens: Tensor
    ) -> Tensor:
        """Logits [b, classes] from the second round's patches and the first round's tokens.

        ``new_patches`` float32 [b, k, patch_size] in [0, 1] at ``new_indices`` int64 [b, k],
        distinct within a row; ``first_tokens`` [b, 1+N, dim] as ``begin`` gave them in the first
        round, or [b, 1+K, dim] of K < N patches, none of which is new.
        """
        whole = first_tokens.shape[1] == 1 + vit.config.grid**2
        places = new_indices if whole else None
        new_tokens = encode(vit, new_patches, new_indices, self.config.after)
        return self.decode(new_tokens, places, first_tokens)

    def decode(self, new_tokens: Tensor, places: Tensor | None, first_tokens: Tensor) -> Tensor:
        """Logits [b, classes] from the new patches' tokens [b, 1+k, dim] (see ``encode``).

        They are at ``places`` [b, k] of ``first_tokens``; None: at none of them.
        """
        x = self.new(new_tokens) if self.config.linear else new_tokens
        if self.config.first:
            old = self.old(first_tokens) if self.config.linear else first_tokens
            if places is None:
                x = torch.cat((old[:, :1] + x[:, :1], old[:, 1:], x[:, 1:]), dim=1)
            else:
                where = F.pad(places + 1, (1, 0))  # the class token's place is 0
                x = old.scatter_add(1, where.unsqueeze(-1).expand_as(x), x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))  # type: ignore[no-any-return]


def begin(vit: VisionTransformer, tokens: Tensor, after: int, done: int = 0) -> Tensor:
    """Tokens [b, 1+k, dim] through the first ``after`` layers of ``vit``.

    ``done``: so many of them have seen the tokens; from ``vit.embed`` none has.
    """
    for block in vit.blocks[done:after]:
        tokens = block(tokens)
    return tokens


def encode(vit: VisionTransformer, patches: Tensor, indices: Tensor, after: int) -> Tensor:
    """Patches [b, k, patch_size] at ``indices`` [b, k] alone, as far as the first ``after`` layers.

    Returns tokens [b, 1+k, dim], those of ``begin(vit, vit.embed(...), after)``, but pays in the
    mixers for the tokens that are there only.
    """
    x: Tensor = vit.patch_embed((patches - vit.mean) / vit.std)
    for mixer in vit.mixers:
        assert isinstance(mixer, Mixer)
        x = _mix(mixer, x, indices, vit.config.grid)
    head = (vit.cls_token + vit.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
    return begin(vit, torch.cat((head, x + vit.pos_embed[0, 1:][indices]), dim=1), after)


def _mix(mixer: Mixer, x: Tensor, indices: Tensor, grid: int) -> Tensor:
    """``mixer(x, indices, grid)`` as one matrix product over the neighbours of each token."""
    b, k, d = x.shape
    wide = grid + 2  # a border of absent tokens
    centre = (indices // grid + 1) * wide + indices % grid + 1
    around = torch.arange(-1, 2, device=x.device)
    near = (around[:, None] * wide + around).flatten()
    y = mixer.norm(x)
    full = y.new_zeros(b, wide * wide, d)
    full = full.scatter(1, centre.unsqueeze(-1).expand(-1, -1, d), y)
    where = (centre.unsqueeze(-1) + near).flatten(1).unsqueeze(-1).expand(-1, -1, d)
    patches = full.gather(1, where).view(b, k, near.numel() * d)
    weight = mixer.conv.weight.permute(0, 2, 3, 1).reshape(d, -1)  # [out, (row, column, in)]
    y = F.linear(patches, weight, mixer.conv.bias)
    return x + mixer.proj(F.gelu(y))  # type: ignore[no-any-return]
