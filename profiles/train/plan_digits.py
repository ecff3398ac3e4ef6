"""The stages that make the profile ``digits`` from the recordings of ``profiles.train.digits``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

from profiles.amend import amend
from profiles.export_recogniser import recogniser_onnx
from profiles.train import deepcod_stage, digits, publish, recogniser
from profiles.train.deepcod import Weights
from profiles.train.deepcod_stage import Aim
from profiles.train.digits import BANDS, CHOOSING, CLASSES, FRAMES, TEST
from profiles.train.job import Job, Stage
from profiles.train.loop import Tick
from profiles.train.photos import Photos
from server.models.checkpoint import load_model, save_weights
from server.models.deepcod import DeepCODConfig
from server.models.recogniser import Recogniser, RecogniserConfig

SERVED = RecogniserConfig(len(CLASSES), BANDS)
LOCAL = RecogniserConfig(len(CLASSES), BANDS, widths=(12, 16, 20, 24), kernel=3)
INPUT = DeepCODConfig((FRAMES,), BANDS, channels=16, kernel=8, levels=9, widths=(32, 24, 16, 16))
BLOCK1 = DeepCODConfig((FRAMES,), SERVED.widths[0], channels=16, kernel=8, levels=9,
                       widths=(32, 24, 16, 16))  # fmt: skip
BLOCK2 = DeepCODConfig((FRAMES // 2,), SERVED.widths[1], channels=12, kernel=4, levels=15,
                       widths=(32, 32, 32))  # fmt: skip
BLOCK3 = DeepCODConfig((FRAMES // 4,), SERVED.widths[2], channels=10, kernel=4, levels=15,
                       widths=(32, 32, 32))  # fmt: skip
"""Codecs of the features, and of what lies before each block."""
NAME = "digits"
DEEPCOD = deepcod_stage.Plan(
    (
        Aim("input", INPUT, 40, 1.5),
        Aim("input", replace(INPUT, channels=24, levels=15), 80, 1.5, Weights(rate=0.1)),
        Aim("block-1", replace(BLOCK1, levels=15), 70, 1.5, Weights(rate=0.05)),
        Aim("block-2", BLOCK2, 35, 1.5, Weights(rate=0.1)),
        Aim("block-3", BLOCK3, 12, 1.5, Weights(rate=0.1)),
    ),
    backbone="recogniser",
)  # fmt: skip
TRAINED = ("recogniser", "local")


def train_recogniser(job: Job) -> None:
    """The server's recogniser."""
    model, seconds = recogniser.train(
        SERVED, digits.training(job.data), job.checkpoint("recogniser"), job.minutes(4), job.seed,
        job.resume,
    )  # fmt: skip
    save_weights(model, job.weights("recogniser"))
    held = digits.choosing(job.data)
    right = recogniser.accuracy(_trained(job), held.seen(), held.labels)
    job.record("recogniser", seconds, held_out=right)


def train_local(job: Job) -> None:
    """The device's own small recogniser, taught by the server's."""
    model, seconds = recogniser.train(
        LOCAL, digits.training(job.data), job.checkpoint("local"), job.minutes(3), job.seed,
        job.resume, _trained(job),
    )  # fmt: skip
    macs = recogniser_onnx(model, FRAMES, job.out / "local.onnx")
    held = digits.choosing(job.data)
    right = recogniser.accuracy(model, held.seen(), held.labels)
    job.record("local", seconds, held_out=right, macs=macs)


def make_profile(job: Job) -> None:
    """Publish what the stages before left."""
    target = publish.PROFILES / NAME
    target.mkdir(parents=True, exist_ok=True)
    records = {stage: job.recorded(stage) for stage in TRAINED}
    reported = digits.load(job.data, TEST)
    full = recogniser.accuracy(_trained(job), reported.seen(), reported.labels)
    document = {
        "format": 1,
        "name": NAME,
        "task": "listen",
        "classes": list(CLASSES),
        "input": {"height": BANDS, "width": FRAMES, "channels": 1, "patch": 1},
        "models": {},
        "strategies": {},
        "device": {"files": []},
        "made": {
            "data": "Free Spoken Digit Dataset (CC BY-SA 4.0): takes "
            f"{TEST.stop}-{CHOOSING.start - 1} of each speaker and digit train, "
            f"{CHOOSING.start}-{CHOOSING.stop - 1} choose, up to {TEST.stop - 1} report",
            "command": f"./run train all {NAME} --data fsdd.tar",
            "seed": job.seed,
            "seconds": {stage: record["seconds"] for stage, record in records.items()},
            "hardware": publish.hardware(),
            "accuracy": {
                "frames": f"{len(reported)} recordings of the test set, in torch",
                "full": full,
                "held_out": {stage: record["held_out"] for stage, record in records.items()},
            },
            "date": datetime.now(UTC).date().isoformat(),
        },
    }
    (target / "profile.json").write_text(json.dumps(document))
    amend(
        target,
        models={"recogniser": (job.weights("recogniser"), asdict(SERVED))},
        strategies={
            "raw": {"codec": "zstd", "form": "frame"},
            "local": {"file": "device/local.onnx", "device_macs": records["local"]["macs"]},
        },
        files={"device/local.onnx": job.out / "local.onnx"},
    )


def train_deepcod(job: Job) -> None:
    """DeepCOD's codecs before the published recogniser, at its input and before its last block."""
    spoken, held = digits.training(job.data), digits.choosing(job.data)

    def varied(tick: Tick) -> digits.U8:
        return digits.augmented(spoken, tick.indices, tick.rng)

    known = Photos(held.seen(), held.labels)
    deepcod_stage.stage(job, NAME, DEEPCOD, spoken.seen(), known, varied)


def _trained(job: Job) -> Recogniser:
    model = load_model(job.weights("recogniser"), "recogniser", asdict(SERVED))
    assert isinstance(model, Recogniser)
    return model.requires_grad_(False)


STAGES: dict[str, Stage] = {
    "recogniser": train_recogniser,
    "local": train_local,
    "publish": make_profile,
    "deepcod": train_deepcod,
}
