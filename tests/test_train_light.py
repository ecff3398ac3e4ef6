"""The training of the light inference, beside a profile small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from common import profile as profiles_of
from profiles.train import light, publish
from profiles.train.job import Job
from profiles.train.loop import Budget
from profiles.train.photos import Photos
from profiles.train.served import U8
from server.models import macs
from server.models.checkpoint import load_model
from server.models.light import LightInference
from server.models.mae import take
from tests.profiles import picture, tiny


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    return tiny(tmp_path)


def photos(directory: Path, count: int) -> Photos:
    profile = profiles_of.load(directory)
    frames = np.stack([picture(profile, seed) for seed in range(count)])
    return Photos(frames, np.arange(count) % 4)


def test_round_two_asks_for_what_attention_wants_and_was_not_sent(directory: Path) -> None:
    models = light.served(directory)
    torch.manual_seed(0)
    patches = torch.rand(3, 16, 768)
    second = models.round_one(patches, 0.25, 0.3)
    assert second.sent.shape == (3, 4)
    assert second.wanted.shape == (3, 5)
    seen = models.vit(models.mae.recover(second.first, second.sent))
    torch.testing.assert_close(seen.logits, second.logits)
    for sent, wanted, looked in zip(second.sent, second.wanted, seen.attention, strict=True):
        left = sorted(set(range(16)) - set(sent.tolist()), key=lambda place: -looked[place])
        assert sorted(left[:5]) == wanted.tolist()
    # Coded as it is served: near the patches, but not the same.
    assert 0 < (second.new - take(patches, second.wanted)).abs().mean() < 0.3


def test_what_is_trained_is_in_the_profile(directory: Path, tmp_path: Path) -> None:
    data = photos(directory, 12)
    job = Job((), tmp_path / "out", 0, Budget(steps=2), False)
    before = light.served(directory)
    light.stage(job, "tiny", lambda chosen, _: data.frames[chosen], data.labels, 12, data)
    profile = profiles_of.load(directory)  # checks every digest
    entry = profile.models["light"]
    assert isinstance(load_model(entry.file, entry.kind, entry.config), LightInference)
    assert light.served(directory).digest == before.digest  # nothing else was touched
    made = json.loads((directory / "profile.json").read_text())["made"]["light"]
    assert made["steps"] == 2
    assert set(made["accuracy"]) == {"round one", "run again", *light.variants(before.vit.config)}
    full = macs.classify(before.vit.config)
    assert made["share_of_full"]["light"] == pytest.approx(
        macs.light(light.variants(before.vit.config)["light"], before.vit.config, 4) / full,
        abs=1e-4,
    )


def test_lessons_are_written_again_for_another_classifier(directory: Path, tmp_path: Path) -> None:
    data = photos(directory, 8)
    calls = []

    def frames(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> U8:
        calls.append(len(chosen))
        return np.asarray(data.frames[chosen])

    root = tmp_path / "lessons"
    light.write(root, light.served(directory), frames, data.labels, 16, 0)
    light.write(root, light.served(directory), frames, data.labels, 16, 0)
    assert calls == [8, 8]
    lessons = light.Lessons(root)
    new, places, first, labels, answers = lessons.chunk(1)
    assert new.shape == (8, 1 + places.shape[1], 16)
    assert (first.shape, labels.shape, answers.shape) == ((8, 17, 16), (8,), (8, 4))
    other = light.served(tiny(tmp_path / "other", seed=1))
    light.write(root, other, frames, data.labels, 16, 0)
    assert len(calls) == 4
