"""The masked autoencoder that recovers a frame from some of its patches (He et al. 2022).

Parameter names are those of the official code. Differences from it: the visible patches may be
*given* (A-MOT's device chooses them), and pixels are predicted as they are, not normalised per
patch, because a model trained on normalised pixels cannot restore brightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from server.models.vit import IMAGENET_MEAN, IMAGENET_STD, Block, PatchEmbed


@dataclass(frozen=True)
class MAEConfig:
    """Shape of a model. Sides in pixels; ``mean`` and ``std`` per channel, for [0, 1] pixels."""

    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    image: int = 224
    patch: int = 16
    channels: int = 3
    mlp_ratio: float = 4.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ValueError("image must be a multiple of patch")
        if self.dim % self.heads or self.decoder_dim % self.decoder_heads:
            raise ValueError("dim must be a multiple of heads, in encoder and decoder")
        if self.dim % 4 or self.decoder_dim % 4:
            raise ValueError("sine-cosine positions need dim and decoder_dim to be multiples of 4")

    @property
    def grid(self) -> int:
        """Patches along one side of the frame."""
        return self.image // self.patch

    @property
    def patch_size(self) -> int:
        """Values in one patch vector."""
        return self.patch * self.patch * self.channels


KEEP = (0.1, 0.6)
"""Range of the share of patches kept in training: A-MOT's first round varies in size."""


class MaskedAutoencoder(nn.Module):
    """Recovers all patches of a frame from the visible ones."""

    mean: Tensor
    std: Tensor
    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch * config.patch
        self.register_buffer("mean", torch.tensor(config.mean).repeat(pixels), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).repeat(pixels), persistent=False)
        self.register_buffer("pos_embed", positions(config.dim, config.grid))
        self.register_buffer("decoder_pos_embed", positions(config.decoder_dim, config.grid))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        self.patch_embed = PatchEmbed(config.patch_size, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.mlp_ratio, config.eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.decoder_embed = nn.Linear(config.dim, config.decoder_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(config.decoder_dim, config.decoder_heads, config.mlp_ratio, config.eps)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_dim, eps=config.eps)
        self.decoder_pred = nn.Linear(config.decoder_dim, config.patch_size)
        self._init()

    def _init(self) -> None:
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, visible: Tensor, indices: Tensor) -> Tensor:
        """Normalised patches [b, k, patch_size] at ``indices`` [b, k] to tokens [b, 1+k, dim]."""
        x = self.patch_embed(visible) + self.pos_embed[0, 1:][indices]
        head = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((head, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor, indices: Tensor) -> Tensor:
        """Tokens [b, 1+k, dim] to normalised predictions of every patch [b, n, patch_size]."""
        x = self.decoder_embed(tokens)
        b, n = x.shape[0], self.config.grid**2
        where = indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        full = self.mask_token.expand(b, n, -1).scatter(1, where, x[:, 1:])
        x = torch.cat((x[:, :1], full), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]  # type: ignore[no-any-return]

    def recover(self, visible: Tensor, indices: Tensor) -> Tensor:
        """All patches of a frame, [b, n, patch_size] in [0, 1].

        ``visible`` float32 [b, k, patch_size] in [0, 1] are the patches at ``indices`` int64
        [b, k], distinct within a row; they come back exactly as given.
        """
        tokens = self.encode((visible - self.mean) / self.std, indices)
        pixels = (self.decode(tokens, indices) * self.std + self.mean).clamp(0, 1)
        where = indices.unsqueeze(-1).expand(-1, -1, pixels.shape[-1])
        return pixels.scatter(1, where, visible)

    def forward(self, patches: Tensor, keep: float | None = None) -> Tensor:
        """The training loss: mean squared error of the removed patches, in normalised pixels.

        ``patches`` float32 [b, n, patch_size] in [0, 1]. ``keep`` is the share of patches kept,
        by default drawn uniformly from ``KEEP``; which ones are kept is random (torch's generator).
        """
        b, n, _ = patches.shape
        share = float(torch.empty(()).uniform_(*KEEP)) if keep is None else keep
        order = torch.rand(b, n, device=patches.device).argsort(1)
        count = min(n - 1, max(1, int(n * share)))
        kept, removed = order[:, :count], order[:, count:]
        target = (patches - self.mean) / self.std
        tokens = self.encode(take(target, kept), kept)
        predicted = take(self.decode(tokens, kept), removed)
        return (predicted - take(target, removed)).square().mean()


def take(values: Tensor, indices: Tensor) -> Tensor:
    """The rows ``indices`` [b, k] of ``values`` [b, n, d]: [b, k, d]."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [1, 1+grid*grid, dim]; the class token's is zero.

    The first half of a vector encodes the column and the second the row, each as sines then
    cosines of base 10000 (the official code's order).
    """
    rate = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid, dtype=torch.float64),
        torch.arange(grid, dtype=torch.float64),
        indexing="ij",
    )
    parts = []
    for axis in (columns, rows):
        angle = axis.reshape(-1, 1) * rate
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=1).float()
    return torch.cat((torch.zeros(1, dim), table)).unsqueeze(0)
