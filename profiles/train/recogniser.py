"""Trains a recogniser of spoken digits; the device's small one by the large one's answers too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from profiles.train import digits
from profiles.train.digits import U8, Spoken
from profiles.train.loop import Budget, Recipe, Tick, fit
from server.models.recogniser import Recogniser, RecogniserConfig


def to_features(frames: U8) -> Tensor:
    """uint8 features [n, bands, frames, 1] as float32 [n, bands, frames] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames[..., 0])).float() / 255


def train(
    config: RecogniserConfig,
    spoken: Spoken,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
    teacher: Recogniser | None = None,
) -> tuple[Recogniser, float]:
    """A trained recogniser and the seconds it took; distilled where there is a ``teacher``."""
    torch.manual_seed(seed)
    model = Recogniser(config)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        x = to_features(digits.augmented(spoken, tick.indices, tick.rng))
        labels = torch.from_numpy(spoken.labels[tick.indices])
        logits = model(x)
        value = F.cross_entropy(logits, labels, label_smoothing=0.1)
        if teacher is not None:
            with torch.no_grad():
                taught = F.softmax(teacher(x), 1)
            soft = F.kl_div(F.log_softmax(logits, 1), taught, reduction="batchmean")
            value = 0.3 * value + 2.0 * soft
        right = (logits.argmax(1) == labels).float().mean()
        return value, {"loss": float(value.detach()), "right": float(right)}

    recipe = Recipe(lr=4e-3, batch=64, weight_decay=0.05, warmup=0.1, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, len(spoken), seed=seed, resume=resume,
        checkpoint=checkpoint, title="recogniser",
    )  # fmt: skip
    return model, seconds


@torch.no_grad()
def accuracy(model: Recogniser, frames: U8, labels: npt.NDArray[np.int64]) -> float:
    """Top-1 accuracy on features [n, bands, frames, 1]."""
    model.eval()
    return float((model(to_features(frames)).argmax(1).numpy() == labels).mean())
