"""The training of the light inference, beside a profile small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from common import profile as profiles_of
from device.bundle import Bundle
from profiles.train import light, publish, second
from profiles.train.job import Job
from profiles.train.loop import Budget
from profiles.train.photos import Photos
from profiles.train.second import RECOVERIES, Recovery
from profiles.train.served import U8
from server.models import macs
from server.models.checkpoint import load_model
from server.models.light import LightInference
from server.models.mae import take
from server.models.spread import spread
from server.serving import Serving
from server.strategies.amot import Amot
from tests.profiles import picture, tiny
from tests.test_conformance_server import Pair


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    return tiny(tmp_path)


def photos(directory: Path, count: int) -> Photos:
    profile = profiles_of.load(directory)
    frames = np.stack([picture(profile, seed) for seed in range(count)])
    return Photos(frames, np.arange(count) % 4)


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_round_two_asks_for_what_is_wanted_most_and_was_not_sent(
    directory: Path, recovery: Recovery
) -> None:
    models = second.served(directory)
    torch.manual_seed(0)
    patches = torch.rand(3, 16, 768)
    found = models.round_one(patches, 0.25, 0.3, recovery)
    assert found.sent.shape == (3, 4)
    assert found.wanted.shape == (3, 5)
    if recovery == "mae":
        seen = models.vit(models.mae.recover(found.first, found.sent))
        wanted = seen.attention
    else:
        seen = models.vit(found.first, found.sent)
        wanted = spread(seen.attention, found.sent, 4)
    torch.testing.assert_close(seen.logits, found.logits)
    for sent, asked, looked in zip(found.sent, found.wanted, wanted, strict=True):
        left = sorted(set(range(16)) - set(sent.tolist()), key=lambda place: -looked[place])
        assert sorted(left[:5]) == asked.tolist()
    # Coded as it is served: near the patches, but not the same.
    assert 0 < (found.new - take(patches, found.wanted)).abs().mean() < 0.3


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_running_again_is_what_the_server_does(
    directory: Path, recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what the server decoded and asked for, in both rounds of its own conversation."""
    profile = profiles_of.load(directory)
    serving = Serving(profile)
    pair = Pair(profile, {"amot": Amot(serving)}, Bundle(profile.manifest, profile.directory))
    one, two = pair.converse("amot", 3, r2=0.25, threshold=1.0, recovery=recovery)[0]
    first = torch.from_numpy(one.work.arrays["indices"])[None]
    every = torch.from_numpy(two.work.arrays["indices"])[None]
    pixels = serving.pixels([two.work.arrays["patches"]])
    new = ~torch.isin(every[0], first[0])
    models = second.served(directory)
    handed = second.Second(
        torch.empty(0), torch.empty(0), first, every[:, new],
        serving.pixels([one.work.arrays["patches"]]), pixels[:, new],
    )  # fmt: skip
    monkeypatch.setattr(second, "coded", lambda patches, quality: patches)
    answer = models.run_again(handed, recovery).softmax(-1)[0].numpy()
    np.testing.assert_allclose(two.outcome.probabilities, answer, atol=1e-5)


def test_what_is_trained_is_in_the_profile(directory: Path, tmp_path: Path) -> None:
    data = photos(directory, 12)
    job = Job((), tmp_path / "out", 0, Budget(steps=2), False)
    before = second.served(directory)
    light.stage(job, "tiny", lambda chosen, _: data.frames[chosen], data.labels, 12, data)
    profile = profiles_of.load(directory)  # checks every digest
    entry = profile.models["light"]
    assert isinstance(load_model(entry.file, entry.kind, entry.config), LightInference)
    assert second.served(directory).digest == before.digest  # nothing else was touched
    made = json.loads((directory / "profile.json").read_text())["made"]["light"]
    assert made["steps"] == 2
    vit = before.vit.config
    for recovery, first in (("mae", None), ("none", round(before.r1 * 16))):
        found = made[recovery]
        assert found["count"] == 48  # each frame four times
        assert set(found["accuracy"]) == {"round one", "run again", *light.variants(vit)}
        share = macs.light(light.variants(vit)["light"], vit, 4, first) / macs.classify(vit)
        assert found["share_of_full"]["light"] == pytest.approx(share, abs=1e-4)
    assert made["mae"]["mega_macs"]["run again"] > made["mae"]["mega_macs"]["full inference"]
    assert made["none"]["mega_macs"]["run again"] < made["none"]["mega_macs"]["full inference"]


def test_ablations_take_as_many_steps_and_a_stopped_training_goes_on(
    directory: Path, tmp_path: Path
) -> None:
    data = photos(directory, 8)
    models = second.served(directory)
    paths = lessons(models, tmp_path / "lessons", data, 16)
    out = tmp_path / "out"
    job = Job((), out, 0, Budget(minutes=0.01), False)
    trained, steps, _ = light.train(models, paths, job)
    assert steps > 0
    for name in ("light-only-new", "light-non-linear", "light-one-attention"):
        assert torch.load(out / f"{name}.ckpt", weights_only=True)["step"] == steps
    (out / "light-non-linear.ckpt").unlink()
    again, same, _ = light.train(models, paths, Job((), out, 0, job.budget, True))
    assert same == steps
    for name, model in trained.items():
        for key, value in model.state_dict().items():
            torch.testing.assert_close(again[name].state_dict()[key], value)


def test_lessons_are_written_once_for_a_classifier(directory: Path, tmp_path: Path) -> None:
    data = photos(directory, 8)
    root = tmp_path / "lessons"
    first = lessons(second.served(directory), root, data, 16)
    assert len(first) == 2
    lesson = second.read(first[1])
    assert lesson.places is not None
    assert lesson.new.shape == (8, 1 + lesson.places.shape[1], 16)
    assert (lesson.tokens.shape, lesson.again.shape) == ((8, 17, 16), (8, 4))
    assert sorted(lesson.labels.tolist()) == sorted(data.labels.tolist())
    stamp = first[0].stat().st_mtime_ns
    first[1].unlink()
    lessons(second.served(directory), root, data, 16)
    assert first[0].stat().st_mtime_ns == stamp
    torch.testing.assert_close(second.read(first[1]), lesson)
    other = second.served(tiny(tmp_path / "other", seed=1))
    lessons(other, root, data, 16)
    assert first[0].stat().st_mtime_ns > stamp


def test_lessons_without_recovery_hold_the_sent_patches_alone(
    directory: Path, tmp_path: Path
) -> None:
    data = photos(directory, 8)
    (path,) = lessons(second.served(directory), tmp_path / "lessons", data, 8, "none")
    lesson = second.read(path)
    assert lesson.places is None
    assert lesson.tokens.shape == (8, 5, 16)
    models = second.served(directory)
    model = light.LightInference(light.variants(models.vit.config)["light"])
    assert light.decode(model, models, lesson).shape == (8, 4)


@torch.no_grad()
def test_a_variant_with_fewer_layers_takes_the_tokens_further(
    directory: Path, tmp_path: Path
) -> None:
    models = second.served(directory)
    assert models.after == 0  # of two layers
    lesson = second.read(lessons(models, tmp_path / "lessons", photos(directory, 8), 8)[0])
    assert lesson.places is not None
    config = light.variants(models.vit.config)["one-attention"]
    model = light.LightInference(config).eval()
    model.start_from(models.vit)
    assert config.after == 1
    new, tokens = (models.vit.blocks[0](part) for part in (lesson.new, lesson.tokens))
    expected = model.decode(new, lesson.places, tokens)
    torch.testing.assert_close(light.decode(model, models, lesson), expected)


def lessons(
    models: second.Served, root: Path, data: Photos, count: int, recovery: Recovery = "mae"
) -> list[Path]:
    """Lessons from a quarter of the patches at first."""

    def frames(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> U8:
        return np.asarray(data.frames[chosen])

    return second.write(
        root, models, frames, data.labels, recovery, count, (0.25, 0.25), (0.1, 0.3), 0, half=False
    )
