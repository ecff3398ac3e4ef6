"""Attention on some patches of a frame, spread to its other places.

A classifier that sees the sent patches alone says nothing of the others. What A-MOT asks for in
its second round (Liu et al. 2024, section 4.2) are then the places near patches that the class
token attends to: objects are larger than a patch.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

REACH = 1.0
"""Deviation of the Gaussian, in patches: the next patch counts 0.6, the one after it 0.14."""


def spread(attention: Tensor, indices: Tensor, grid: int) -> Tensor:
    """Mean attention near each place, weighted by distance: float [b, grid*grid].

    ``attention`` [b, k] is that of the patches at ``indices`` int64 [b, k]. Far from all of them
    the score falls to zero.
    """
    near = _nearness(grid, attention.device)[indices]
    return (attention.unsqueeze(-1) * near).sum(1) / (near.sum(1) + 1e-3)


@cache
def _nearness(grid: int, device: torch.device) -> Tensor:
    """[n, n]: the Gaussian of the distance between any two places."""
    axis = torch.arange(grid, dtype=torch.float32, device=device)
    places = torch.cartesian_prod(axis, axis)
    return torch.exp(-torch.cdist(places, places).square() / (2 * REACH * REACH))
