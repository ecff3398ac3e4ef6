"""Choosing the settings of what DeepCOD is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.offloading import Setting
from common.profile import load
from device.bundle import Bundle
from device.strategies import offload
from device.strategy import Frame, Plan
from profiles import offloading, offloading_grid
from profiles.train.photos import Photos
from server.serving import Serving
from server.strategies import offload as served
from tests.profiles import picture, tiny


def photos(root: Path, seeds: range) -> Photos:
    profile = load(root)
    frames = np.stack([picture(profile, seed) for seed in seeds])
    return Photos(frames, np.arange(len(frames)) % 4)


def test_only_what_no_cheaper_setting_reaches_is_kept() -> None:
    costs = [(30.0, 0.5), (10.0, 0.4), (20.0, 0.4), (40.0, 0.5), (50.0, 0.7), (30.0, 0.45)]
    found = offloading_grid.front([{"cost": cost, "accuracy": right} for cost, right in costs])
    assert [row["cost"] for row in found] == [10.0, 30.0, 50.0]
    many = [{"cost": float(n), "accuracy": n / 10} for n in range(10)]
    assert offloading_grid.front(many) == many[-offloading_grid.KEPT :]


def test_what_is_far_behind_a_cheaper_setting_is_not_tried_again() -> None:
    costs = [(10.0, 0.3), (20.0, 0.8), (30.0, 0.7), (40.0, 0.6), (50.0, 0.85)]
    found = offloading_grid.promising([{"cost": c, "accuracy": right} for c, right in costs])
    assert found == [False, True, True, False, True]


def test_ranges_have_zero_as_a_level_and_one_step_for_all_planes() -> None:
    random = np.random.default_rng(0)
    bright = [random.uniform(0, 255, (1, 8, 8)).astype(np.float32) for _ in range(5)]
    colours = [random.normal(0, 20, (2, 4, 4)).astype(np.float32) for _ in range(5)]
    first, second = offloading.parts(list(zip(bright, colours, strict=True)), {"levels": 16})
    step = (first.high - first.low) / 15
    assert (first.low, first.levels) == (0.0, 16)
    assert second.low == -second.high
    assert (second.high - second.low) / (second.levels - 1) == pytest.approx(step)
    assert second.restore(second.quantise(np.zeros(1, np.float32)))[0] == pytest.approx(0, abs=1e-4)
    sensed = [(b.reshape(1, -1) * 16, b.reshape(1, -1) - 128) for b in bright]
    means, rest = offloading.parts(sensed, {"levels": 9, "ratio": 0.5})
    assert (means.levels, rest.levels) == (offloading.MEANS, 9)


def test_the_profile_gets_settings_that_both_sides_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny(tmp_path)
    both = photos(root, range(12)), photos(root, range(20, 26))
    monkeypatch.setattr(offloading, "frames_of", lambda *_: both)
    for name in ("AT_INPUT", "WITHIN"):
        grids = {key: found[:: len(found) - 1] for key, found in getattr(offloading, name).items()
                 if len(found) > 1}  # fmt: skip
        monkeypatch.setattr(offloading, name, grids)
    assert offloading.main([str(root), "--data", "none", "--amend"]) == 0
    document: Any = json.loads((root / "profile.json").read_text())
    settings = document["strategies"]["offload"]["settings"]
    assert set(settings) == {"input", "block-1"}
    assert {"intp", "lossy", "cs", "jpeg", "webp"} == set(settings["input"])
    assert document["made"]["offload"]["frames"] == 6
    profile = load(root)
    device = offload.create(
        Bundle(profile.manifest, root, {file.path for file in profile.manifest.files})
    )
    server = served.create(Serving(profile))
    frame = Frame(0, "0", picture(profile, 30), 0.0)
    for point, methods in settings.items():
        for method, rows in methods.items():
            costs = [row["cost"] for row in rows]
            assert costs == sorted(costs)
            for rate, row in enumerate(rows, 1):
                if method not in offload.PICTURES:
                    assert Setting.of(row).parts
                params = {"method": method, "point": point, "rate": rate}
                query = next(device.infer(frame, Plan("offload", params)))
                (outcome,) = server.forward([server.prepare(query, None)])  # type: ignore[arg-type]
                assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)


def test_what_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert offloading.main(["sings", "--data", "none"]) == 2
    assert "no profile 'sings'" in capsys.readouterr().err


def test_frames_of_every_class_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 600
    frames = np.zeros((count, 8, 8, 3), np.uint8)
    folders = Photos(frames, np.arange(count) * 10 // count)
    monkeypatch.setattr(offloading, "load", lambda *_: folders)
    shown, tried = offloading.frames_of(load("imagenette"), [Path("none")], 40)
    assert len(shown) == offloading.FITTED
    assert len(tried) == 40
    for part in (shown, tried):
        assert set(part.labels) == set(range(10))
