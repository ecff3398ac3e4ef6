"""Exits for a finished vision transformer: trained, published, and served by three tiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import tiertables
from common import profile as profiles
from common import registry
from device.bundle import Bundle
from device.strategy import Frame, Plan
from profiles import scores
from profiles.pools import Costs, Layers
from profiles.train import photo_exits, publish
from profiles.train.job import Job
from profiles.train.patchwork import to_patches
from profiles.train.photos import IMAGENETTE, Photos, load, split_off
from server.memory import NOTHING
from server.models.exits import Exits
from server.serving import Serving, strategies
from tests.profiles import CLASSES, SIDE, tiny

LAYERS = Layers(1, 2, 2)
BOTH = dict.fromkeys(("dimec", "dimee"), LAYERS)


def photos(count: int, seed: int) -> Photos:
    """Pictures whose class their brightness tells."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    noise = rng.integers(0, 40, (count, SIDE, SIDE, 3))
    return Photos((60 * labels[:, None, None, None] + noise).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> profiles.Profile:
    root = tmp_path_factory.mktemp("profiles")
    directory = tiny(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "PROFILES", root)
        job = Job((), root / "out", 0, None, False)
        (root / "out").mkdir()
        photo_exits.stage(job, "tiny", photos(100, 1), photos(60, 2), BOTH, Costs(gamma=2.0), 95)
    return profiles.load(directory)


def test_exits_learn_and_are_noted_after_every_epoch() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 900)
    tokens = torch.from_numpy(rng.normal(size=(3, 900, 96)).astype(np.float32))
    kinds = rng.normal(size=(4, 96)).astype(np.float32)
    tokens[1] += torch.from_numpy(kinds[labels])  # layer two tells, layer one does not
    exits, notes = photo_exits.train(tokens[:, :800], labels[:800], tokens[:, 800:], 0)
    assert (exits.config.layers, len(notes)) == (2, photo_exits.EPOCHS)
    right = [(note.argmax(-1) == labels[800:]).mean(1) for note in notes]
    assert right[-1][1] > 0.9 > 0.6 > right[-1][0]
    assert notes[-1][1].max(1).mean() > notes[0][1].max(1).mean()
    np.testing.assert_allclose(notes[-1].sum(-1), 1, atol=1e-5)


def test_an_exit_learns_the_same_whatever_exits_there_are_behind_it() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    tokens = torch.from_numpy(rng.normal(size=(4, 200, 16)).astype(np.float32))
    many, _ = photo_exits.train(tokens, labels, tokens, 0)
    few, _ = photo_exits.train(tokens[:3], labels, tokens[:3], 0)
    for name, value in few.state_dict().items():
        torch.testing.assert_close(value, many.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dimec", "dimee"])
def test_device_and_server_answer_by_the_exits_that_were_trained(
    made: profiles.Profile, name: str
) -> None:
    present = {file.path for file in made.manifest.files}
    bundle = Bundle(made.manifest, made.directory, present)
    device = registry.load("device.strategies", name).create(bundle)
    serving = Serving(made)
    server = strategies(serving, [name])[name]
    vit, exits = serving.classifier, serving.model("exits", Exits)
    for index, pixels in enumerate(photos(4, 3).frames):
        frame = Frame(index, str(index), pixels, 0.0)
        with torch.inference_mode():
            x = vit.blocks[0](vit.embed(to_patches(pixels[None])))
            first = exits(x, 1).softmax(-1)[0].numpy()
            last = vit.forward_head(vit.blocks[1](x)).softmax(-1)[0].numpy()
        with pytest.raises(StopIteration) as stop:
            next(device.infer(frame, Plan(name, {"route": "mobile"})))
        told = dict(stop.value.value.top)
        np.testing.assert_allclose([told[label] for label in CLASSES], first, atol=2e-3)
        for send, close in (("hidden", 5e-3), ("input", 0.2)):  # a JPEG is not the picture
            query = next(device.infer(frame, Plan(name, {"route": "cloud", "send": send})))
            (outcome,) = server.forward([server.prepare(query, NOTHING)])
            np.testing.assert_allclose(outcome.probabilities, last, atol=close)


def test_the_profile_says_what_was_chosen(made: profiles.Profile, tmp_path: Path) -> None:
    assert made.made["exits"]["frames"] == 100
    assert made.manifest.params("dimec")["blocks"] == ["weights/vit-block1.onnx"]
    assert 0.25 <= made.manifest.params("dimee")["alpha"] <= 1
    assert sum(made.made["dimec"]["pools"]) == pytest.approx(1, abs=1e-3)


def test_the_bench_s_tables_are_of_the_photographs_held_out_and_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "STEPS", 3)
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 100), ("val", 24)):
        shown = photos(count, count)
        for row, (frame, label) in enumerate(zip(shown.frames, shown.labels, strict=True)):
            folder = tmp_path / "data" / part / sorted(IMAGENETTE)[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(folder / f"{row}.JPEG", quality=95)
    directory, data = tiny(tmp_path), [tmp_path / "data"]
    known = load(data, "train", SIDE)
    chosen, held = (known.take(rows) for rows in split_off(known))
    (tmp_path / "out").mkdir()
    job = Job((), tmp_path / "out", 0, None, False)
    photo_exits.stage(job, "tiny", chosen, held, BOTH, Costs(gamma=2.0, unit=0.01), 95)
    profile = profiles.load(directory)
    costs = tiertables.costs_of(profile)
    assert costs == Costs(gamma=2.0, unit=0.01)
    for study in tiertables.studies(profile, data, costs, 12):
        assert (len(study.held.split), len(study.test)) == (20, 12)
        assert study.made.layers == LAYERS
        made = profile.made[study.name]
        assert (round(study.made.alpha, 4), study.made.beta) == (made["alpha"], made["beta"])
        assert np.bincount(study.made.pools, minlength=3) / 20 == pytest.approx(made["pools"])
        assert study.test.probabilities.shape == (2, 12, len(CLASSES))
    both = [tiertables.studies(profile, data, costs, count)[0].test for count in (None, 99)]
    assert np.array_equal(both[0].labels, both[1].labels)
    assert sorted(both[0].labels) == sorted(load(data, "val", SIDE).labels)
    assert list(both[0].labels) != sorted(both[0].labels), "not class by class"
