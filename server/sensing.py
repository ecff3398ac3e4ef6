"""Recovers planes from compressed measurements, by iterative shrinkage-thresholding (ISTA).

Blocks x are sparse in the cosine transform: y = M x, theta = D x, and

    theta = argmin 1/2 |y - M D' theta|^2 + penalty |theta|_1

Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm", SIAM J. Imaging 2009: with
its momentum (FISTA), step 1, since the rows of M are orthonormal. The first measurement is the
block's scaled mean, which costs nothing and so is left alone.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.offloading import Shape, block, projection

ITERATIONS = 100


def recover(measured: Tensor, shape: Shape, penalty: float, iterations: int = ITERATIONS) -> Tensor:
    """Planes [b, c, *grid] from measurements [b, n, m] of their n blocks; `shape` is [c, *grid]."""
    sides = block(shape)
    basis = transform(sides).to(measured)
    rows = torch.from_numpy(projection(math.prod(sides))[: measured.shape[2]]).to(measured)
    matrix = rows @ basis.T  # [m, values]: what is measured of coefficients
    threshold = torch.full((basis.shape[0],), penalty).to(measured)
    threshold[0] = 0.0
    theta = ahead = measured @ matrix
    momentum = 1.0
    for _ in range(iterations):
        step = ahead + (measured - ahead @ matrix.T) @ matrix
        found = step.sign() * (step.abs() - threshold).clamp_min(0)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (momentum - 1) / following * (found - theta)
        theta, momentum = found, following
    return joined(theta @ basis, shape)


def joined(blocks: Tensor, shape: Shape) -> Tensor:
    """Blocks [b, n, values] as planes [b, c, *grid]: what `common.offloading.cut` cuts."""
    sides = block(shape)
    if len(sides) == 1:
        return blocks.reshape(-1, *shape)
    c, h, w = shape
    tiles = blocks.reshape(-1, c, h // sides[0], w // sides[1], *sides)
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(-1, c, h, w)


@lru_cache(maxsize=16)
def transform(sides: Shape) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of blocks of `sides`, as rows [values, values]."""
    made: np.ndarray[Any, Any] = np.ones((1, 1))
    for side in sides:
        place, wave = np.arange(side) + 0.5, np.arange(side)[:, None]
        rows = np.cos(math.pi * wave * place / side) * math.sqrt(2 / side)
        rows[0] /= math.sqrt(2)
        made = np.kron(made, rows)
    return torch.from_numpy(made.astype(np.float32))
