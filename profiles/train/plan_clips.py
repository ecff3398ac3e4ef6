"""The stages that make the profile ``clips`` from clips rendered here."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime

import torch
import torch.nn.functional as F
from torch import Tensor

from profiles import export_janus
from profiles.train import clips, evaluate, signs
from profiles.train.job import Job, Stage
from profiles.train.loop import Recipe, Tick, fit
from profiles.train.patchwork import to_patches
from profiles.train.publish import PROFILES, digest, hardware
from profiles.train.vit_signs import Student
from server.models.checkpoint import save_weights
from server.models.vit import ViTConfig

SEEDS = signs.TRAINING[:6_000]
CHOOSING = signs.CALIBRATION[:500]
REPORTED = signs.EVALUATION[:1_000]
HALF, SPREAD = (0.5, 0.5, 0.5), (0.28, 0.28, 0.28)
VIT = ViTConfig(
    dim=72, depth=6, heads=3, classes=len(clips.CLASSES), image=clips.SIDE, stem="local",
    stem_width=16, mean=HALF, std=SPREAD, frames=clips.FRAMES, tubelet=2,
)  # fmt: skip
"""2x16x16 tubelets: 128 tokens and the class token."""


def train_vit(job: Job) -> None:
    """The classifier and what every tubelet shows, on clips shifted, half of them backwards."""
    torch.manual_seed(job.seed)
    data, model = clips.load(SEEDS), Student(VIT)
    weight = torch.ones(VIT.classes + 1)
    weight[clips.BACKGROUND] = 0.1

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        i = tick.indices
        chosen = clips.Clips(data.frames[i], data.labels[i], data.signs[i])
        batch = clips.augmented(chosen, tick.rng)
        target, cells = (torch.from_numpy(a) for a in (batch.labels, clips.tubelets(batch)))
        logits, each = model(to_patches(batch.frames), None)
        right = float((logits.argmax(1) == target).float().mean())
        dense = F.cross_entropy(each.flatten(0, 1), cells.flatten(), weight)
        clip = F.cross_entropy(logits, target, label_smoothing=0.02)
        return clip + dense, {"right": right, "cells": float(dense.detach())}

    recipe = Recipe(lr=2e-3, batch=48, warmup=0.08, ema=0.995)
    seconds = fit(
        model, loss, recipe, job.minutes(10), len(data), seed=job.seed, resume=job.resume,
        checkpoint=job.checkpoint("vit"), title="vit",
    )  # fmt: skip
    save_weights(model.vit, job.weights("vit"))
    job.record("vit", seconds, chosen_on=evaluate.full(model.vit, clips.load(CHOOSING)))


def make_profile(job: Job) -> None:
    """Measure on evaluation clips, write the profile, and let it offer Janus."""
    directory = PROFILES / "clips"
    weights = directory / "weights" / "vit.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.weights("vit"), weights)
    recorded = job.recorded("vit")
    profile = {
        "format": 1,
        "name": "clips",
        "task": "watch",
        "classes": list(clips.CLASSES),
        "input": {
            "height": VIT.frames * VIT.image, "width": VIT.image, "channels": 3, "patch": VIT.patch
        },
        "models": {
            "vit": {
                "kind": "vit", "file": "weights/vit.safetensors", "sha256": digest(weights),
                "config": asdict(VIT),
            }
        },
        "strategies": {"janus": {"frame": "jpeg", "quality": 90}, "raw": {"codec": "zstd"}},
        "device": {"files": []},
        "made": {
            "data": f"rendered clips: training seeds {SEEDS.start}-{SEEDS.stop - 1}, reported on "
            f"{REPORTED.start}-{REPORTED.stop - 1}",
            "command": "./run train all clips",
            "seed": job.seed,
            "seconds": {"vit": recorded["seconds"]},
            "hardware": hardware(),
            "accuracy": {
                "held_out": recorded["chosen_on"],
                "full": evaluate.full(
                    evaluate.trained_vit(weights, VIT), clips.load(REPORTED)
                ),
            },
            "date": datetime.now(UTC).date().isoformat(),
        },
    }  # fmt: skip
    (directory / "profile.json").write_text(json.dumps(profile, indent=2) + "\n")
    export_janus.publish(directory)


STAGES: dict[str, Stage] = {"vit": train_vit, "publish": make_profile}
