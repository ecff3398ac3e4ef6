"""Trains the super-resolution network on crops of whole frames, made small as the device does.

Every step draws a scale of its own, and half of the crops go through the JPEG coder at a random
quality: the network meets what the strategy may send ("real-world" degradations, Wang et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from common.codec import decode, encode
from device.picture import fit as fit_picture
from profiles import amend
from profiles.train import publish
from profiles.train.job import Job
from profiles.train.loop import Budget, Recipe, Tick, fit
from server.models.checkpoint import save_weights
from server.models.superres import SuperResConfig, SuperResolution, resample

U8 = npt.NDArray[np.uint8]
CROP = 96
"""Side of a training crop in pixels."""
SCALES = (0.25, 0.95)
QUALITIES = (10, 95)


def train(
    config: SuperResConfig,
    frames: Callable[[Tick], U8],
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[SuperResolution, float]:
    """A trained model and the seconds it took. ``frames``: uint8 [n, h, w, 3] of one step."""
    torch.manual_seed(seed)
    model = SuperResolution(config)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        sharp = crops(frames(tick), tick.rng)
        side = round(CROP * tick.rng.uniform(*SCALES))
        small = np.stack([degraded(crop, side, tick.rng) for crop in sharp])
        value = F.l1_loss(model(tensor(small), CROP, CROP), tensor(sharp))
        return value, {"l1": 255 * float(value.detach())}

    recipe = Recipe(lr=1e-3, batch=8, weight_decay=0.0, warmup=0.03, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="superres",
    )  # fmt: skip
    return model, seconds


def crops(frames: U8, rng: np.random.Generator) -> U8:
    """One random crop [CROP, CROP, 3] of each frame, half of them flipped."""
    out = np.empty((len(frames), CROP, CROP, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        top, left = (int(v) for v in rng.integers(0, np.array(frame.shape[:2]) - CROP + 1))
        piece = frame[top : top + CROP, left : left + CROP]
        out[index] = piece[:, ::-1] if rng.random() < 0.5 else piece
    return out


def degraded(crop: U8, side: int, rng: np.random.Generator) -> U8:
    """``crop`` at ``side`` pixels; every other one through the JPEG coder."""
    small = fit_picture(crop, side, side)
    if rng.random() < 0.5:
        small = decode(encode(small, "jpeg", quality=int(rng.integers(*QUALITIES))))
    return small


def tensor(frames: U8) -> Tensor:
    """uint8 [n, h, w, 3] as float32 [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float() / 255


@torch.no_grad()
def fidelity(model: SuperResolution, frames: U8, scale: float) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB of ``frames`` from ``scale``: the model's and bicubic's."""
    side = frames.shape[1]
    error = {"superres": 0.0, "bicubic": 0.0}
    for frame in frames:
        low = round(side * scale)
        small, sharp = tensor(fit_picture(frame, low, low)[None]), tensor(frame[None])
        restored = model.restore(small, side, side)
        error["superres"] += float(F.mse_loss(restored, sharp))
        error["bicubic"] += float(F.mse_loss(resample(small, side, side).clamp_(0, 1), sharp))
    return {name: round(-10 * math.log10(e / len(frames)), 2) for name, e in error.items()}


def stage(job: Job, name: str, frames: U8, held: U8) -> None:
    """Train on ``frames``, measure on ``held`` (uint8 [n, h, w, 3]), add it to profile ``name``.

    With it the profile offers the strategies that send the frame small.
    """
    config = SuperResConfig()
    model, seconds = train(
        config, lambda tick: frames[tick.indices], len(frames), job.checkpoint("superres"),
        job.minutes(9), job.seed, job.resume,
    )  # fmt: skip
    save_weights(model, job.weights("superres"))
    figures = {f"psnr_at_{scale}": fidelity(model, held, scale) for scale in (0.25, 0.5, 0.75)}
    job.record("superres", seconds, **figures)
    amend.amend(
        publish.PROFILES / name, models={"superres": (job.weights("superres"), asdict(config))},
        strategies={"isr": {}, "sdt": {}}, made={"superres": job.recorded("superres")},
    )  # fmt: skip
