"""Trains the masked autoencoder that recovers frames (He et al. 2022, with a range of ratios)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.patchwork import to_patches
from server.models.mae import MAEConfig, MaskedAutoencoder

Frames = Callable[[Tick], npt.NDArray[np.uint8]]
"""Makes the frames uint8 [n, 224, 224, 3] of one step."""


def train(
    config: MAEConfig,
    frames: Frames,
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[MaskedAutoencoder, float]:
    """A trained model and the seconds it took."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(config)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        value = model(to_patches(frames(tick)))
        return value, {"loss": float(value.detach())}

    recipe = Recipe(lr=1.5e-3, batch=32, weight_decay=0.02, betas=(0.9, 0.95), ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="mae",
    )  # fmt: skip
    return model, seconds


@torch.no_grad()
def recovery_error(
    model: MaskedAutoencoder, frames: npt.NDArray[np.uint8], share: float, seed: int = 0
) -> float:
    """Root of the mean squared error of the recovered pixels, in 8-bit grey levels."""
    torch.manual_seed(seed)
    total, count = 0.0, 0
    for start in range(0, len(frames), 50):
        patches = to_patches(frames[start : start + 50])
        b, n, _ = patches.shape
        order = torch.rand(b, n).argsort(1)
        kept, removed = order[:, : int(n * share)], order[:, int(n * share) :]
        rows = torch.arange(b).unsqueeze(1)
        out = model.recover(patches[rows, kept], kept)
        error = (out[rows, removed] - patches[rows, removed]).square()
        total, count = total + float(error.sum()), count + error.numel()
    return 255 * math.sqrt(total / count)
