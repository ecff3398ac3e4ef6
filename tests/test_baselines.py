"""Choosing the settings of what A-MOT is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common import registry
from common.profile import load
from device.bundle import Bundle
from device.params import from_user
from device.planner import params_of
from profiles import baselines
from profiles.baselines import Trial
from profiles.train.photos import Photos
from server.serving import Serving, strategies
from tests.profiles import picture, tiny


def test_every_setting_tried_is_one_that_the_device_takes() -> None:
    for grids in (baselines.RAW, baselines.CODED):
        for name, settings in grids.items():
            for params in settings:
                assert from_user(name, params_of(name), params) == params


@pytest.mark.parametrize("area", baselines.AREAS)
def test_a_small_frame_has_its_share_of_the_pixels_at_most(area: float) -> None:
    share = (round(224 * baselines.scale_of(area)) / 224) ** 2
    assert 0.97 * area - 0.005 < share <= area


def test_a_threshold_ends_after_round_one_where_confidence_reaches_it() -> None:
    right = np.array([[True, True], [False, True], [True, False]])
    sizes = np.array([[10, 5], [10, 5], [10, 5]])
    trial = Trial({"r2": 0.1}, right, np.array([0.95, 0.55, 0.75], np.float32), sizes)
    at = {choice["threshold"]: choice for choice in trial.choices()}
    assert (at[0.0]["accuracy"], at[0.0]["cost"]) == (pytest.approx(2 / 3, abs=1e-4), 10)
    assert (at[0.6]["accuracy"], at[0.6]["cost"]) == (1.0, pytest.approx(10 + 5 / 3))
    assert (at[1.0]["accuracy"], at[1.0]["cost"]) == (pytest.approx(2 / 3, abs=1e-4), 15)


def test_one_round_has_no_threshold() -> None:
    trial = Trial({}, np.ones((2, 2), bool), np.ones(2, np.float32), np.array([[7, 0], [9, 0]]))
    assert list(trial.choices()) == [{"cost": 8.0, "accuracy": 1.0}]


def test_a_ladder_has_the_best_within_each_limit_once() -> None:
    found = [
        {"quality": 10, "cost": 900.0, "accuracy": 0.5},
        {"quality": 20, "cost": 1500.0, "accuracy": 0.4},
        {"quality": 30, "cost": 1900.0, "accuracy": 0.8},
        {"quality": 40, "cost": 1950.0, "accuracy": 0.8},
    ]
    rows = baselines.ladder(found, (500, 1000, 1600, 1920, 2000, 3000), 1)
    # Of two equals the dearer one, where there is room for it.
    steps = [(row["bytes"], row["quality"]) for row in rows]
    assert steps == [(1000, 10), (1920, 30), (2000, 40)]
    (row,) = baselines.ladder([{"codec": "raw", "scale": 0.5, "cost": 50.0, "accuracy": 0.9}],
                              (0.2, 0.6), 100)  # fmt: skip
    assert row == {"budget": 0.6, "scale": 0.5, "accuracy": 0.9, "cost": 0.5}


def test_a_trial_is_the_conversation_that_device_and_server_have(tmp_path: Path) -> None:
    profile = load(tiny(tmp_path))
    frames = np.stack([picture(profile, seed) for seed in range(3)])
    settings = [{"scale": s, "r2": r2, "codec": "raw"} for s in (0.25, 0.5) for r2 in (0.1, 0.25)]
    device = registry.load("device.strategies", "sdt").create(
        Bundle(profile.manifest, profile.directory)
    )
    photos = Photos(frames, np.array([0, 1, 2]))
    made = [
        baselines.trials(device, strategies(serving, ["sdt"])["sdt"], photos, settings)
        for serving in (Serving(profile), baselines.Remembering(profile))
    ]
    for plain, remembered, params in zip(*made, settings, strict=True):
        small, patches = round(64 * params["scale"]) ** 2 * 3, round(16 * params["r2"])
        assert plain.sizes.tolist() == [[small, patches * 768]] * 3
        assert np.array_equal(plain.right, remembered.right)
        np.testing.assert_array_equal(plain.confidence, remembered.confidence)


def test_the_profile_gets_tables_that_the_strategies_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny(tmp_path)
    profile = load(directory)
    photos = Photos(np.stack([picture(profile, s) for s in range(4)]), np.array([0, 1, 2, 3]))
    monkeypatch.setattr(baselines, "photographs", lambda *_: photos)
    monkeypatch.setattr(baselines, "BYTES", (400, 1000, 100_000))
    for name in ("RAW", "CODED"):
        grids = {key: found[:: len(found) // 2] for key, found in getattr(baselines, name).items()}
        monkeypatch.setattr(baselines, name, grids)
    assert baselines.main([str(directory), "--amend"]) == 0
    offered = json.loads((directory / "profile.json").read_text())["strategies"]
    for name in ("jpeg", "sdt", "isr"):
        for row in offered[name]["coded"]:
            params = {k: v for k, v in row.items() if k not in ("bytes", "cost", "accuracy")}
            assert from_user(name, params_of(name), params) == params
            assert row["cost"] <= row["bytes"]
    assert {row["format"] for row in offered["jpeg"]["coded"]} == {"jpeg", "webp"}
    assert all(row["cost"] <= row["budget"] for row in offered["sdt"]["budgets"])
    assert offered["jpeg"]["quality"] == profile.manifest.params("jpeg")["quality"]
    load(directory)


def test_what_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert baselines.main(["sings"]) == 2
    assert "no profile 'sings'" in capsys.readouterr().err
