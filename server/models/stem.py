"""A convolutional stem that sees one patch at a time, and mixing between neighbouring tokens.

A transformer on raw patches needs far more pictures than small profiles have; convolutions bring
the missing prior (Xiao et al. 2021, "Early convolutions help transformers see better"). Theirs
cross the borders of patches. Here the first ones do not, so that a patch is embedded without its
neighbours, and the mixers treat tokens that are absent as zero, so any subset of a frame works.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LocalStem(nn.Module):
    """A patch to a token, by four convolutions zero-padded at the patch's border."""

    def __init__(self, patch: int, channels: int, width: int, dim: int) -> None:
        super().__init__()
        if patch % 4:
            raise ValueError("the local stem needs a patch side that is a multiple of 4")
        self.patch, self.channels = patch, channels
        self.conv1 = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 2, 3, 2, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width * 2)
        self.conv4 = nn.Conv2d(width * 2, width * 2, 3, 1, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(width * 2)
        self.proj = nn.Linear(width * 2 * (patch // 4) ** 2, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """[b, k, patch*patch*channels] to [b, k, dim]."""
        b, k, _ = patches.shape
        x = patches.reshape(b * k, self.patch, self.patch, self.channels).permute(0, 3, 1, 2)
        x = F.relu(self.norm1(self.conv1(x)))
        x = x + F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = x + F.relu(self.norm4(self.conv4(x)))
        return self.proj(x.flatten(1)).view(b, k, -1)  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """A residual 3x3 convolution over the grid of tokens, where absent tokens are zero."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.conv = nn.Conv2d(dim, dim, 3, 1, 1)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, indices: Tensor | None, grid: int) -> Tensor:
        """Tokens [b, k, dim] at places ``indices`` [b, k] (None: all) to the same shape."""
        b, _, d = x.shape
        y = self.norm(x)
        if indices is None:
            y = self._convolve(y, grid)
        else:
            where = indices.unsqueeze(-1).expand(-1, -1, d)
            full = y.new_zeros(b, grid * grid, d).scatter(1, where, y)
            y = self._convolve(full, grid).gather(1, where)
        return x + self.proj(F.gelu(y))  # type: ignore[no-any-return]

    def _convolve(self, y: Tensor, grid: int) -> Tensor:
        b, _, d = y.shape
        image = y.transpose(1, 2).reshape(b, d, grid, grid)
        return self.conv(image).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
