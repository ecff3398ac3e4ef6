"""The stage that trains DeepCOD's codecs for a profile: one for each point and rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import columns, profile
from common.columns import ColumnBook
from device import encoder
from profiles import amend, export_recogniser
from profiles.export_deepcod import numpy_file, onnx_file, stages, tflite_file
from profiles.train import publish
from profiles.train.deepcod import (
    U8,
    Inputs,
    Weights,
    measured,
    symbols,
    to_pictures,
    train,
)
from profiles.train.job import Job
from profiles.train.loop import Budget, Tick
from profiles.train.photos import Photos
from server.models.backbone import Backbone, backbone
from server.models.checkpoint import load_model, save_weights
from server.models.cnn import Cnn
from server.models.deepcod import DeepCOD, DeepCODConfig, Rates, RatesConfig
from server.models.recogniser import Recogniser

SAMPLE, BOOK = 300, 1500
"""Frames that the encoder starts from, and that the code book is made from."""
FOLDER = "device/deepcod"
WEIGHTS = Weights()


@dataclass(frozen=True)
class Aim:
    """One codec: where, of which shape, how many bytes it starts at, minutes of training.

    `after`: it starts from the codec before it in the plan, of its point and, but for the levels,
    its shape.
    """

    point: str
    config: DeepCODConfig
    size: float
    minutes: float
    weights: Weights = WEIGHTS
    after: bool = False


@dataclass(frozen=True)
class Plan:
    """What a profile's stage trains: points in their order, of each its rates by rising bytes.

    `backbone`: the kind of the profile's model behind them; `flip`: whether a mirrored frame is as
    good as new; `default`: the point and the rate that serve unless told otherwise; `runtime`: what
    computes the convolution then.
    """

    aims: tuple[Aim, ...]
    backbone: str
    flip: bool = False
    default: tuple[str, int] = ("input", 1)
    runtime: str = "numpy"

    @property
    def config(self) -> RatesConfig:
        """Of the model that holds all codecs."""
        return RatesConfig(
            tuple(asdict(aim.config) for aim in self.aims), tuple(aim.point for aim in self.aims)
        )

    def names(self) -> list[tuple[str, int]]:
        """The point of each aim, and which of its rates that is, as devices name it."""
        points = [aim.point for aim in self.aims]
        return [(point, points[: at + 1].count(point)) for at, point in enumerate(points)]


def stage(
    job: Job, name: str, plan: Plan, frames: U8, held: Photos,
    varied: Callable[[Tick], U8] | None = None,
) -> None:  # fmt: skip
    """Train the codecs of `plan` on `frames` [n, h, w, c], measure on `held`, publish in `name`.

    `varied`: the frames of a step where they are other ones than those at its indices.
    """
    directory = publish.PROFILES / name
    (entry,) = (m for m in profile.load(directory).models.values() if m.kind == plan.backbone)
    model = load_model(entry.file, entry.kind, entry.config).requires_grad_(False)
    before = backbone(model)
    order = np.random.default_rng(job.seed).permutation(len(frames))
    sample = frames[np.sort(order[:SAMPLE])]
    spent, whole, last, where = {}, Rates(plan.config), None, ""
    for aim, (point, rate) in zip(plan.aims, plan.names(), strict=True):
        key = f"{point}-{rate}"
        if point != where:
            where, at = point, _at(before, point, sample)
            pick = batches(before, point, frames, plan.flip, varied)
        last, spent[key] = train(
            aim.config, before, point, pick, at, aim.size, len(frames),
            job.checkpoint(f"deepcod-{key}"), job.budget or Budget(minutes=aim.minutes), job.seed,
            job.resume, aim.weights, begin=last if aim.after else None,
        )  # fmt: skip
        whole.codec(rate, point).load_state_dict(last.state_dict())
    save_weights(whole, job.weights("deepcod"))
    seen = frames[np.sort(order[:BOOK])]
    figures = export(job, plan, model, seen, held)
    job.record("deepcod", sum(spent.values()), held_out=figures)
    add(job, plan, directory, figures)


@torch.no_grad()
def batches(
    before: Backbone, point: str, frames: U8, flip: bool, varied: Callable[[Tick], U8] | None
) -> Inputs:
    """What a step learns from at `point`; with `flip`, half of the steps see mirrored frames.

    Behind the input it is computed once for all `frames` that do not vary: of 9,000 photographs
    and their mirror images, 0.3 GB at the deepest point, 1.4 GB at the first.
    """
    if point == "input" or varied is not None:

        def fresh(tick: Tick) -> Tensor:
            chosen = frames[tick.indices] if varied is None else varied(tick)
            mirrored = flip and tick.rng.random() < 0.5
            with torch.no_grad():
                return before.before(to_pictures(chosen[:, :, ::-1] if mirrored else chosen), point)

        return fresh
    sides = (frames, frames[:, :, ::-1]) if flip else (frames,)
    maps = [_at(before, point, side, torch.float16) for side in sides]

    def stored(tick: Tick) -> Tensor:
        side = maps[int(flip and tick.rng.random() < 0.5)]
        return side[torch.from_numpy(tick.indices)].float()

    return stored


@torch.no_grad()
def export(
    job: Job, plan: Plan, model: torch.nn.Module, frames: U8, held: Photos
) -> dict[str, dict[str, float]]:
    """Write the device's files, with books made from `frames`; what each codec does on `held`."""
    served = load_model(job.weights("deepcod"), "deepcod", asdict(plan.config))
    assert isinstance(served, Rates)
    before = backbone(model)
    figures: dict[str, dict[str, float]] = {}
    known = ""
    for point, rate in plan.names():
        codec = served.codec(rate, point)
        if point != known:
            at, held_at = (_at(before, point, each) for each in (frames, held.frames))
            known = point
        made = columns.trained(symbols(codec, at), codec.config.levels)
        write(job.out / "device" / f"{point}-{rate}", codec, made, model, point)
        codes = [made.encode(each) for each in symbols(codec, held_at)]
        size = float(np.mean([len(code) for code in codes]))
        figures[f"{point}-{rate}"] = {
            **measured(codec, before, point, to_pictures, held), "bytes": round(size, 1)
        }  # fmt: skip
        print(f"{point}-{rate}", figures[f"{point}-{rate}"], flush=True)
    return figures


def write(stem: Path, codec: DeepCOD, made: ColumnBook, model: torch.nn.Module, point: str) -> None:
    """The encoder's three files, STEM.npz, STEM.onnx and STEM.tflite."""
    shrink = model.config.shrink if isinstance(model, Cnn) and point == "input" else 1
    frames = point == "input"
    numpy_file(codec, made, Path(f"{stem}.npz"), frames, shrink)
    onnx_file(codec, Path(f"{stem}.onnx"), frames, shrink)
    tflite_file(codec, Path(f"{stem}.tflite"), frames, shrink)
    encoder.load(Path(f"{stem}.npz"))


def add(job: Job, plan: Plan, directory: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Put what `stage` left in the job's folder into the profile in `directory`."""
    kinds = ("npz", "onnx", "tflite")
    loaded = profile.load(directory)
    size = (loaded.manifest.input.height, loaded.manifest.input.width)
    (entry,) = (m for m in loaded.models.values() if m.kind == plan.backbone)
    model = load_model(entry.file, entry.kind, entry.config)
    files: dict[str, Path] = {}
    names = backbone(model).points
    deepest = max(names.index(aim.point) for aim in plan.aims)
    cut, stem = [], job.out / "device" / "stage"
    if isinstance(model, Cnn):
        cut = stages(model, entry.file, stem, size, deepest)
    elif isinstance(model, Recogniser):
        cut = export_recogniser.stages(model, size[1], stem, deepest)
    points: list[dict[str, Any]] = []
    for place, point in enumerate(names[: deepest + 1]):
        rates = []
        for _, rate in (each for each in plan.names() if each[0] == point):
            paths = {kind: f"{FOLDER}/{point}-{rate}.{kind}" for kind in kinds}
            files |= {path: job.out / "device" / Path(path).name for path in paths.values()}
            measure = figures[f"{point}-{rate}"]
            known = {"bytes": "bytes", "accuracy": "accuracy", "whole": "clean"}
            rates.append({**paths, **{key: measure[name] for key, name in known.items()}})
        points.append({"name": point, "rates": rates})
        if place:
            paths = {kind: _place(directory, file) for kind, file in cut[place - 1].items()}
            files |= {path: cut[place - 1][kind] for kind, path in paths.items()}
            points[-1]["stage"] = paths
    held = {}
    if deepest and isinstance(model, Cnn):
        held["weights"] = _place(directory, entry.file)
        files[held["weights"]] = entry.file
    point, rate = plan.default
    amend.amend(
        directory,
        models={"deepcod": (job.weights("deepcod"), asdict(plan.config))},
        strategies={
            "deepcod": {
                "point": point, "rate": rate, "runtime": plan.runtime, "backbone": plan.backbone,
                "points": points, **held,
            }
        },
        files=files,
        made={"deepcod": job.recorded("deepcod")},
    )  # fmt: skip


def _place(directory: Path, file: Path) -> str:
    """Where a file lies in the profile: what stands beside the weights stays there."""
    inside = file.parent == directory / "weights"
    return f"weights/{file.name}" if inside else f"{FOLDER}/{file.name}"


@torch.no_grad()
def _at(
    model: Backbone, point: str, frames: U8, kept: torch.dtype = torch.float32, batch: int = 50
) -> Tensor:
    parts = [
        model.before(to_pictures(frames[first : first + batch]), point).to(kept)
        for first in range(0, len(frames), batch)
    ]
    return torch.cat(parts)
