"""The command line of the training, each stage for one step, to a profile that loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import profile as profiles_of
from profiles.pools import Layers
from profiles.train import plan_imagenette, plan_signs, publish, teach
from profiles.train.__main__ import main
from profiles.train.photos import IMAGENETTE
from server.models.checkpoint import load_model

MAE = {"dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
VIT = {"dim": 16, "depth": 3, "heads": 2, "stem_width": 4, "mixers": 1}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a folder of profiles of our own, and models small enough for a test."""
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(publish, "PROFILES", tmp_path / "profiles")
    for plan in (plan_signs, plan_imagenette):
        monkeypatch.setattr(plan, "VIT", replace(plan.VIT, **VIT))
        monkeypatch.setattr(plan, "MAE", replace(plan.MAE, **MAE))
    own = {"SEEDS": 0, "UNSEEN": 4, "CHOOSING": 1_000_000, "JUDGING": 1_000_004}
    own |= {"REPORTED": 2_000_000}
    for name, first in own.items():
        monkeypatch.setattr(plan_signs, name, range(first, first + 4))
    monkeypatch.setattr(teach, "CROPS", 1)
    # What one step of training leaves cannot be told from chance: any share will do.
    monkeypatch.setattr(plan_signs, "SHARE", 1.0)
    monkeypatch.setattr(plan_imagenette, "SHARE", 1.0)
    tiers = dict.fromkeys(("dimec", "dimee"), Layers(1, 2, 3))
    monkeypatch.setattr(plan_imagenette, "TIERS", tiers)
    return tmp_path


def check(directory: Path, classes: int) -> None:
    """The profile loads, with every digest right, and so do its models."""
    loaded = profiles_of.load(directory)
    assert len(loaded.manifest.classes) == classes
    offered = {"amot", "jpeg", "raw", "local", "isr", "sdt", "po", "df", "mbc"}
    assert offered <= set(loaded.manifest.strategies)
    for model in loaded.models.values():
        load_model(model.file, model.kind, model.config)
    made = json.loads((directory / "profile.json").read_text())["made"]
    assert {"data", "command", "seed", "seconds", "hardware", "accuracy", "date"} <= set(made)


def test_signs_from_nothing_to_a_profile(place: Path) -> None:
    assert main(["all", "signs", "--steps", "1", "--threads", "1"]) == 0
    check(place / "profiles" / "signs", 16)


def test_photographs_from_nothing_to_a_profile(place: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for wnid in IMAGENETTE:
            folder = place / "photos" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                frame = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
                Image.fromarray(frame).save(folder / f"{wnid}_{number}.JPEG")
    data = ["--data", str(place / "photos")]
    assert main(["all", "imagenette", "--steps", "1", "--threads", "1", *data]) == 0
    check(place / "profiles" / "imagenette", 10)


def test_a_wrong_command_line_says_what_to_do(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["teacher", "imagenette", "--steps", "1"]) == 2
    assert "--data" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["teacher", "signs"])
    assert caught.value.code == 2
    assert "mae, vit, local, publish" in capsys.readouterr().err
