"""Frames as patches, and random choices of patches, for the training of the server's models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.models.mae import MaskedAutoencoder, take

PATCH = 16


def to_patches(frames: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 frames [n, h, w, 3] to float32 patches [n, h*w/256, 768] in [0, 1].

    Patches are row by row, and a patch is in (row, column, channel) order.
    """
    n, h, w, c = frames.shape
    rows = torch.from_numpy(np.array(frames))
    grid = rows.view(n, h // PATCH, PATCH, w // PATCH, PATCH, c).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(n, (h // PATCH) * (w // PATCH), PATCH * PATCH * c).float() / 255


def some(count: int, patches: int, batch: int) -> Tensor:
    """``count`` distinct random places of ``patches`` for each of ``batch`` frames, sorted."""
    return torch.rand(batch, patches).argsort(1)[:, :count].sort(1).values


@torch.no_grad()
def recovered(mae: MaskedAutoencoder, patches: Tensor, share: float) -> Tensor:
    """Frames as the server sees them: a random ``share`` of the patches, the rest recovered."""
    b, n, _ = patches.shape
    indices = some(max(1, int(n * share)), n, b)
    return mae.recover(take(patches, indices), indices)
