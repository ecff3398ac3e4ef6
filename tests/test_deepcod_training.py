"""DeepCOD's training: what learns, what does not, and a profile that offers what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import profile, registry
from device.bundle import Bundle
from device.strategy import Frame
from device.strategy import Plan as FramePlan
from profiles.train import deepcod, publish
from profiles.train.job import Job
from profiles.train.loop import Budget, Tick
from profiles.train.photos import Photos
from server.memory import NOTHING
from server.models.cnn import Cnn, CnnConfig
from server.models.deepcod import DeepCOD, DeepCODConfig
from server.serving import Serving, strategies
from tests.profiles import picture, tiny

CONFIG = DeepCODConfig((64, 64), channels=6, kernel=8, levels=9, widths=(8, 8, 4))


def scenes(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 8, 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def trained(
    checkpoint: Path, backbone: Cnn, steps: int, first: float = 0.5
) -> tuple[DeepCOD, list[float]]:
    data = scenes(40)
    seen: list[float] = []

    def frames(tick: Tick) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        seen.append(tick.progress)
        return data[tick.indices]

    model, _ = deepcod.train(
        CONFIG, backbone, frames, data, len(data), checkpoint, Budget(steps=steps), 0, False,
        deepcod.Weights(first=first), batch=8,
    )  # fmt: skip
    return model, seen


def small() -> Cnn:
    torch.manual_seed(0)
    return Cnn(CnnConfig(4, (8, 8, 8, 8)))


def test_it_starts_from_the_principal_components() -> None:
    model, x = DeepCOD(CONFIG), deepcod.to_signal(scenes(40))
    deepcod.start(model, x, 1.5)
    assert float(model.isometry().detach()) < 1e-4
    y = model.encoder(x).detach()
    energy = y.square().sum((0, 2, 3))
    assert torch.equal(energy, energy.sort(descending=True).values)
    # The scenes are flat within a place: three components hold all there is.
    assert float(energy[:3].sum()) == pytest.approx(float(x.square().sum()), rel=1e-3)
    assert np.allclose(np.diff(model.quantizer.centres.tolist()), 1.5)


def test_only_the_codec_learns(tmp_path: Path) -> None:
    backbone = small().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    start = DeepCOD(CONFIG)
    deepcod.start(start, deepcod.to_signal(scenes(40)), 1.5)
    model, _ = trained(tmp_path / "c.ckpt", backbone, steps=4)
    for name, value in backbone.state_dict().items():  # batch norm's statistics among them
        assert torch.equal(value, before[name]), name
    for part in ("encoder.weight", "quantizer.centres"):
        assert not torch.equal(model.get_parameter(part), start.get_parameter(part))


def test_reconstruction_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = deepcod.distilled

    def noted(*arguments: object) -> torch.Tensor:
        asked.append(1)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deepcod, "distilled", noted)
    _, seen = trained(tmp_path / "c.ckpt", small(), steps=8, first=0.5)
    assert len(asked) == sum(progress >= 0.5 for progress in seen) == 4


@torch.no_grad()
def test_distillation_sums_over_every_layer() -> None:
    backbone = small().eval()
    pictures, others = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert float(deepcod.distilled(backbone.layers, pictures, pictures)) == 0
    total = sum(
        float((a - b).square().mean() / b.square().mean())
        for a, b in zip(backbone.layers(others), backbone.layers(pictures), strict=True)
    )
    value = deepcod.distilled(backbone.layers, others, pictures)
    assert float(value.detach()) == pytest.approx(total, rel=1e-4)


def test_it_learns_to_restore(tmp_path: Path) -> None:
    x = deepcod.to_signal(scenes(8, seed=1))
    model, _ = trained(tmp_path / "c.ckpt", small(), steps=120, first=1.0)
    with torch.no_grad():
        restored = model.decode(model.encode(x))
    error = float((restored - deepcod.coarser(x, 2)).square().mean())
    assert error < 0.6 * float(x.square().mean())


def test_a_stage_makes_a_profile_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    directory = tiny(tmp_path)
    job = Job((), tmp_path / "out", 0, Budget(steps=2), False)
    job.out.mkdir()
    finer = replace(CONFIG, kernel=4, levels=5, widths=(8, 8, 4))
    plan = deepcod.Plan((replace(finer, channels=3), finer), backbone="vit", default=2)
    held = Photos(scenes(6, seed=2), np.arange(6) % 4)
    deepcod.stage(job, "tiny", plan, scenes(20), held)

    made = json.loads((directory / "profile.json").read_text())["made"]["deepcod"]
    sizes = [made["held_out"][rate]["bytes"] for rate in ("1", "2")]
    assert sizes[0] < sizes[1]
    loaded = profile.load(directory)
    files = {file.path for file in loaded.manifest.files}
    assert {f"device/deepcod-2.{kind}" for kind in ("npz", "onnx", "tflite")} <= files
    bundle = Bundle(loaded.manifest, loaded.directory, files)
    device = registry.load("device.strategies", "deepcod").create(bundle)
    server = strategies(Serving(loaded), ["deepcod"])["deepcod"]
    frame = Frame(0, "0", picture(loaded), 0.0)
    for rate in (1, 2):
        symbols = []
        for runtime in ("numpy", "onnx", "tflite"):
            params = {"rate": rate, "runtime": runtime}
            query = next(device.infer(frame, FramePlan("deepcod", params)))
            work = server.prepare(query, NOTHING)
            symbols.append(work.arrays["symbols"])
            assert symbols[-1].shape == (plan.rates[rate - 1].channels, 16, 16)
            assert (symbols[-1] != symbols[0]).mean() < 0.01
        (outcome,) = server.forward([work])
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)
