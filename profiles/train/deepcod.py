"""Trains DeepCOD's encoder, quantiser and decoder before a backbone that stays as it is.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.2 and 3.3: reconstruction first
(10), then distillation over all layers behind the cut as well (11). No label is used; of the
backbone, in evaluation mode, nothing learns.

It starts as `profiles.train.principal` says, as the best linear codec. Every layer's loss is
divided by the mean square of what it should be, so that layers count alike whatever their scale.
`rate` pays for bits (see `server.models.deepcod`); the paper's objective has 0 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from profiles.train import principal
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos
from server.models.backbone import Backbone
from server.models.deepcod import DeepCOD, DeepCODConfig, constrain, settle, snap

U8 = npt.NDArray[np.uint8]
Inputs = Callable[[Tick], Tensor]
"""A step's batch of what lies at a point, float32 [n, features, *size]."""
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d}


@dataclass(frozen=True)
class Weights:
    """Of the loss's terms: `orthogonal` is the paper's alpha (10), `rate` per bit per symbol.

    `first`: the share of the training that is reconstruction alone. `logits`: of the last layer,
    beside 1 for each other.
    """

    orthogonal: float = 0.02
    rate: float = 0.3
    first: float = 0.1
    logits: float = 2.0


def to_signal(frames: U8) -> Tensor:
    """uint8 frames [n, h, w, 3] as float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))) / 127.5 - 1


def to_pictures(frames: U8) -> Tensor:
    """uint8 frames [n, h, w, 3] as float32 [n, 3, h, w] in [0, 1].

    Features of sounds [n, bands, t, 1] become sequences [n, bands, t].
    """
    planes = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))) / 255
    return planes[:, 0] if planes.shape[1] == 1 else planes


def coarser(x: Tensor, factor: int) -> Tensor:
    """The mean of every `factor` x ... x `factor` places of [b, c, *size]."""
    return POOL[x.ndim - 2](x, factor) if factor > 1 else x


def distilled(found: Sequence[Tensor], wanted: Sequence[Tensor], last: float = 1.0) -> Tensor:
    """Equation 11 summed over all layers, each normalised, the last one times `last`."""
    losses = [F.mse_loss(y, t) / t.square().mean() for y, t in zip(found, wanted, strict=True)]
    return torch.stack([*losses[:-1], last * losses[-1]]).sum()


def train(
    config: DeepCODConfig,
    backbone: Backbone,
    point: str,
    inputs: Inputs,
    sample: Tensor,
    size: float,
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
    weights: Weights = Weights(),
    batch: int = 32,
    begin: DeepCOD | None = None,
) -> tuple[DeepCOD, float]:
    """A trained codec for `point`, fit to be served, and the seconds it took.

    `inputs`: one step's out of `samples`; `sample`: some, to start from, and `size` the bytes that
    one of them should take then. `begin`: a trained codec of the same shape to start from instead.
    """
    torch.manual_seed(seed)
    model = principal.start(config, sample, size, begin)
    constrain(model)
    principal.level(model, sample[:32], fresh=begin is None)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        x = inputs(tick)
        wanted = coarser(x, config.shrink)
        restored, bits = model(x)
        error = F.mse_loss(model.scaled(restored), model.scaled(wanted))
        error = error / model.scaled(wanted).square().mean()
        value = error + weights.orthogonal * model.isometry() + weights.rate * bits
        figures = {"error": float(error.detach()), "bits": float(bits.detach())}
        if tick.progress >= weights.first:
            with torch.no_grad():
                targets = backbone.behind(wanted, point)
            like = distilled(backbone.behind(restored, point), targets, weights.logits)
            value = value + like
            figures["layers"] = float(like.detach())
        return value, figures

    recipe = Recipe(lr=2e-3, batch=batch, weight_decay=0.0, warmup=0.05, ema=0.99)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title=f"deepcod {point}",
    )  # fmt: skip
    made = settle(model)
    return (snap(made) if point == "input" else made), seconds


@torch.no_grad()
def measured(
    model: DeepCOD, backbone: Backbone, point: str, inputs: Callable[[U8], Tensor], held: Photos,
    batch: int = 25,
) -> dict[str, float]:  # fmt: skip
    """On `held`: accuracy without and with the codec, and how often both say the same."""
    right = clean = same = 0
    for first in range(0, len(held), batch):
        x = backbone.before(inputs(held.frames[first : first + batch]), point)
        labels = torch.from_numpy(held.labels[first : first + batch])
        wanted = coarser(x, model.config.shrink)
        restored = model.decode(model.encode(x))
        said, meant = (backbone.behind(each, point)[-1].argmax(1) for each in (restored, wanted))
        right += int((said == labels).sum())
        clean += int((meant == labels).sum())
        same += int((said == meant).sum())
    count = len(held)
    return {"clean": clean / count, "accuracy": right / count, "agreement": same / count}


@torch.no_grad()
def symbols(model: DeepCOD, x: Tensor, batch: int = 25) -> U8:
    """The symbols uint8 [n, channels, *grid] of what lies at its point, [n, features, *size]."""
    parts = [
        model.encode(x[first : first + batch]).numpy().astype(np.uint8)
        for first in range(0, len(x), batch)
    ]
    return cast(U8, np.concatenate(parts))
