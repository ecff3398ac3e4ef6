"""The stages that make the profile ``signs`` from scenes rendered here."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch

from profiles.export import local_onnx
from profiles.train import (
    computing,
    deepcod_stage,
    evaluate,
    filter,
    light,
    local,
    mae,
    publish,
    scenes,
    signs,
    superres,
    vit_signs,
)
from profiles.train.deepcod_stage import Aim, Plan
from profiles.train.job import Job, Stage
from profiles.train.loop import Tick
from server.models.checkpoint import save_weights
from server.models.deepcod import DeepCODConfig
from server.models.mae import MAEConfig
from server.models.vit import ViTConfig

SEEDS = signs.TRAINING[:16_000]
CHOOSING = signs.CALIBRATION[:1_000]
TRIED = 400
"""How many of ``CHOOSING`` every setting of A-MOT is tried on."""
REPORTED = signs.EVALUATION[:1_000]
UNSEEN = signs.TRAINING[16_000:28_000]
"""Scenes that the classifier did not learn from, for what learns from its answers."""
JUDGING = signs.CALIBRATION[500_000:504_000]
"""Scenes that nothing is chosen on, to tell variants of a model within a point."""

HALF = (0.5, 0.5, 0.5)
SPREAD = (0.28, 0.28, 0.28)
VIT = ViTConfig(
    dim=128, depth=4, heads=4, classes=len(signs.CLASSES), mlp_ratio=3.0, stem="local",
    stem_width=16, mixers=2, mean=HALF, std=SPREAD,
)  # fmt: skip
MAE = MAEConfig(
    dim=128, depth=4, heads=4, decoder_dim=96, decoder_depth=2, decoder_heads=4, mlp_ratio=3.0,
    mean=HALF, std=SPREAD,
)  # fmt: skip
QUALITY = 75
"""Of the mosaic JPEG: small signs need more than photographs do."""
SHARE = 0.30
"""Mean share of the patches that A-MOT's defaults may send."""
DF = {"r": 0.2, "floor": 0.1, "recovery": "none", "codec": "mosaic", "quality": QUALITY}
"""DF's settings, chosen on calibration scenes."""

DEEPCOD = Plan(
    (Aim("input", DeepCODConfig((224, 224), 3, 24, 8, 33, widths=(48, 32, 16, 12)), 3500, 12),),
    backbone="vit",
)


def train_mae(job: Job) -> None:
    """The masked autoencoder, on whole scenes."""
    data = scenes.load(SEEDS)

    def frames(tick: Tick) -> npt.NDArray[np.uint8]:
        return data.frames[tick.indices]

    model, seconds = mae.train(
        MAE, frames, len(data), job.checkpoint("mae"), job.minutes(5), job.seed, job.resume
    )
    save_weights(model, job.weights("mae"))
    held = scenes.load(CHOOSING).frames[:300]
    error = {f"rmse_at_{share}": mae.recovery_error(model, held, share) for share in (0.15, 0.4)}
    job.record("mae", seconds, **error)


def train_vit(job: Job) -> None:
    """The classifier, on whole scenes, parts of them, and scenes that the MAE recovered."""
    model, seconds = vit_signs.train(
        VIT, scenes.load(SEEDS), evaluate.trained_mae(job.weights("mae"), MAE),
        job.checkpoint("vit"), job.minutes(20), job.seed, job.resume,
    )  # fmt: skip
    save_weights(model, job.weights("vit"))
    job.record("vit", seconds, chosen_on=evaluate.full(model, scenes.load(CHOOSING)))


def train_local(job: Job) -> None:
    """The device's model."""
    data = scenes.load(SEEDS)

    def batch(tick: Tick) -> local.Batch:
        labels = torch.from_numpy(data.labels[tick.indices])
        return local.halve(data.frames[tick.indices]), labels, None

    model, seconds = local.train(
        len(signs.CLASSES), batch, len(data), job.checkpoint("local"), job.minutes(2), job.seed,
        job.resume,
    )  # fmt: skip
    local_onnx(model, job.out / "local.onnx")
    reported = local.accuracy(model, scenes.load(REPORTED))
    job.record("local", seconds, evaluation=reported)


def train_superres(job: Job) -> None:
    """The network that sharpens frames sent at low resolution."""
    superres.stage(job, "signs", scenes.load(SEEDS).frames, scenes.load(CHOOSING).frames[:100])


def train_light(job: Job) -> None:
    """The light inference of A-MOT's second round, beside the published classifier."""
    data = scenes.load(UNSEEN)

    def frames(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        return data.frames[chosen]

    light.stage(job, "signs", frames, data.labels, len(data), scenes.load(JUDGING))


def add_po(job: Job) -> None:
    """PO: the first layers of the published classifier, for the device."""
    computing.po(job, "signs")


def train_df(job: Job) -> None:
    """DF: the filter finds the signs, whose places the renderer knows."""
    data, held = scenes.load(SEEDS), scenes.load(CHOOSING)
    train, known = (
        filter.Marked(part.frames, part.cells != scenes.BACKGROUND) for part in (data, held)
    )
    computing.df(job, "signs", filter.batches_of(train), len(data), known, DF)


def train_mbc(job: Job) -> None:
    """MBC: the bottleneck around the split of the published classifier."""
    data = scenes.load(SEEDS)

    def frames(tick: Tick) -> npt.NDArray[np.uint8]:
        return data.frames[tick.indices]

    held = scenes.load(CHOOSING).take(np.arange(min(TRIED, len(CHOOSING))))
    computing.mbc(job, "signs", 12, 8, frames, data.frames[:200], len(data), held)


def train_deepcod(job: Job) -> None:
    """DeepCOD's codec before the published classifier."""
    held = scenes.load(CHOOSING).take(np.arange(min(TRIED, len(CHOOSING))))
    deepcod_stage.stage(job, "signs", DEEPCOD, scenes.load(SEEDS).frames, held)


def make_profile(job: Job) -> None:
    """Choose A-MOT's settings on calibration scenes, measure on evaluation scenes, publish."""
    vit, model = (
        evaluate.trained_vit(job.weights("vit"), VIT),
        evaluate.trained_mae(job.weights("mae"), MAE),
    )
    data = scenes.load(CHOOSING)
    found = evaluate.choices(vit, model, data.take(np.arange(min(TRIED, len(data)))))
    best = evaluate.choose(found, SHARE)
    reported = scenes.load(REPORTED)
    rounds = evaluate.two_rounds(vit, model, reported, best.r1, [best.r2])
    final = evaluate.at(rounds[0], best.r1, best.r2, best.threshold)
    accuracy = {
        "frames": f"{len(REPORTED)} evaluation scenes, seeds from {REPORTED.start}; raw patches",
        "full": evaluate.full(vit, reported),
        "amot": asdict(final),
        "one_round_equal_share": evaluate.one_round(vit, model, reported, final.share),
        "one_round_0.25": evaluate.one_round(vit, model, reported, 0.25),
        "local": job.recorded("local")["evaluation"],
    }
    made = publish.Made(
        f"rendered scenes: training seeds {SEEDS.start}-{SEEDS.stop - 1}, settings chosen on "
        f"{CHOOSING.start}-{CHOOSING.stop - 1}, reported on {REPORTED.start}-{REPORTED.stop - 1}",
        "./run train all signs",
        accuracy,
    )
    publish.publish(job, "signs", signs.CLASSES, VIT, MAE, best, made, QUALITY)


STAGES: dict[str, Stage] = {
    "mae": train_mae,
    "vit": train_vit,
    "local": train_local,
    "publish": make_profile,
    "superres": train_superres,
    "light": train_light,
    "po": add_po,
    "df": train_df,
    "mbc": train_mbc,
    "deepcod": train_deepcod,
}
