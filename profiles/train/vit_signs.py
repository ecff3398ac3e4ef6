"""Trains the sign classifier: every patch also learns which sign it shows.

The boxes of the rendered scenes give each patch token a label, which teaches where to look in a
fraction of the time that one label per frame would take.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.patchwork import recovered, some, to_patches
from profiles.train.scenes import BACKGROUND, Scenes
from server.models.mae import MaskedAutoencoder, take
from server.models.vit import VisionTransformer, ViTConfig

FEW = 64
NARROW = 0.7


class Student(nn.Module):
    """The classifier with a head per patch token, which only training needs."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vit = VisionTransformer(config)
        self.cells = nn.Linear(config.dim, config.classes + 1)

    def forward(self, patches: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the frame [b, classes] and of each patch [b, k, classes + 1]."""
        tokens, _ = self.vit.forward_features(self.vit.embed(patches, indices))
        return self.vit.forward_head(tokens), self.cells(tokens[:, 1:])


def train(
    config: ViTConfig,
    scenes: Scenes,
    mae: MaskedAutoencoder,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[VisionTransformer, float]:
    """A trained classifier and the seconds it took.

    For the first ``NARROW`` of the budget a scene keeps ``FEW`` patches, those of the sign first:
    the differences between signs are learned from a third of the tokens. Then odd steps see a
    random 50-100 % of the patches, and even ones whole frames recovered from 12-60 % of them,
    which is what is served.
    """
    torch.manual_seed(seed)
    model = Student(config)
    mae.eval()

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        patches = to_patches(scenes.frames[tick.indices])
        labels = torch.from_numpy(scenes.labels[tick.indices])
        cells = torch.from_numpy(scenes.cells[tick.indices])
        b, n, _ = patches.shape
        served = tick.progress >= NARROW and tick.step % 2 == 0
        indices = None
        if tick.progress < NARROW:
            rank = torch.rand(b, n) + (cells != BACKGROUND)
            indices = rank.topk(FEW, dim=1).indices
        elif served:
            patches = recovered(mae, patches, tick.rng.uniform(0.12, 0.6))
        elif tick.progress < 0.9:
            indices = some(int(n * tick.rng.uniform(0.5, 1.0)), n, b)
        if indices is not None:
            patches, cells = take(patches, indices), cells.gather(1, indices)
        logits, each = model(patches, indices)
        frame = F.cross_entropy(logits, labels, label_smoothing=0.0 if served else 0.02)
        # Background cells are twenty times as many as sign cells: weigh them down.
        weight = torch.ones(config.classes + 1)
        weight[BACKGROUND] = 0.1
        dense = F.cross_entropy(each.flatten(0, 1), cells.flatten(), weight)
        right = float((logits.argmax(1) == labels).float().mean())
        return frame + dense, {
            "recovered" if served else "full": right,
            "cells": float(dense.detach()),
        }

    recipe = Recipe(lr=1.5e-3, batch=32, weight_decay=0.05, warmup=0.08, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, len(scenes), seed=seed, resume=resume,
        checkpoint=checkpoint, title="vit",
    )  # fmt: skip
    return model.vit, seconds
