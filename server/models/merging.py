"""Token merging as pure functions (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023).

Between the attention and the MLP of a block, tokens are told apart by place into A (even, the class
token first) and B (odd). Every token of A finds the most similar token of B; the r most similar
pairs become one token each, the mean of the two weighted by how many patches each stands for. That
number, the token's size, also enters attention ("proportional attention", section 3): without it a
model that was trained on single patches would hear a merged token as if it were one of them.

How many tokens each block merges is data (`common.merging` makes the schedules); nothing is kept
between calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.models.vit import Block


class Matching(NamedTuple):
    """Who merges with whom, as indices: ``kept`` [b, a - r] and ``merged`` [b, r] among A.

    ``into`` [b, r] are the places in B that ``merged`` go to. ``kept`` ascends.
    """

    kept: Tensor
    merged: Tensor
    into: Tensor


def match(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching (section 3) of tokens by ``metric`` [b, n, c], compared by angle.

    The class token, at place 0, is never merged into another. 0 <= r <= (n - 1) // 2.
    """
    metric = F.normalize(metric, dim=-1)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    best, partner = scores.max(-1)
    best[:, 0] = -torch.inf
    order = best.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :r], order[:, r:]
    return Matching(kept.sort(-1).values, merged, partner.gather(1, merged))


def merge(x: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Tokens [b, n, d] of ``size`` [b, n] to [b, n - r, d] and [b, n - r]: kept of A, then B."""
    kept, merged, into = matching

    def rows(values: Tensor, indices: Tensor) -> Tensor:
        return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    weighed = torch.cat((x * size.unsqueeze(-1), size.unsqueeze(-1)), -1)
    here, there = weighed[:, ::2], weighed[:, 1::2]
    to = into.unsqueeze(-1).expand(-1, -1, weighed.shape[-1])
    there = there.scatter_add(1, to, rows(here, merged))
    all_ = torch.cat((rows(here, kept), there), 1)
    return all_[..., :-1] / all_[..., -1:], all_[..., -1]


def block_merging(block: Block, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """``block`` on tokens [b, n, d] of ``size`` [b, n], ``r`` of them merged before its MLP."""
    q, k, v = block.attn.split(block.norm1(x))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=size.log()[:, None, None])
    x = x + block.attn.proj(y.transpose(1, 2).reshape(x.shape))
    if r:
        x, size = merge(x, size, match(k.mean(1), r))
    return x + block.mlp(block.norm2(x)), size


def run(
    blocks: Iterable[nn.Module], x: Tensor, size: Tensor, merges: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """``blocks`` in turn, the i-th merging ``merges[i]`` tokens; shapes as in ``merge``.

    Raises ValueError unless there are as many merges as blocks.
    """
    for block, r in zip(blocks, merges, strict=True):
        assert isinstance(block, Block)
        x, size = block_merging(block, x, size, r)
    return x, size


def unmerged(x: Tensor) -> Tensor:
    """The sizes [b, n] of tokens [b, n, d] that stand for one patch each."""
    return x.new_ones(x.shape[:2])
