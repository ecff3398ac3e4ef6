"""The training of the text service: the split by sentence, batches, all stages on a few lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common import profile as profiles
from common import registry
from device.bundle import Bundle
from device.strategy import Frame, Plan
from profiles.pools import Layers
from profiles.train import bert, plan_sst2, publish, sentences
from profiles.train.job import Job
from profiles.train.loop import Budget
from server.memory import NOTHING
from server.serving import Serving, strategies

GOOD = ("fine", "warm", "bright", "moving", "funny", "clever")
BAD = ("dull", "tired", "flat", "empty", "silly", "weak")


def table(path: Path, count: int = 120) -> Path:
    """Sentences of which good words make the label, each with two phrases of its own."""
    rng = np.random.default_rng(0)
    lines = [sentences.HEADER]
    for number in range(count):
        label = number % 2
        words = rng.choice(GOOD if label else BAD, 3, replace=False)
        whole = f"film {number} is {words[0]} and {words[1]} , so {words[2]}"
        phrases = (whole, f"{number} is {words[0]}", f"and {words[1]} , so {words[2]} film")
        lines += [f"{text}\t{label}" for text in phrases[:2]]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_phrases_follow_their_sentence(tmp_path: Path) -> None:
    data = sentences.load([table(tmp_path / "train.tsv")])
    assert len(data) == 240
    assert len(data.whole) == 120
    by_parent = {parent: data.texts[row] for row, parent in enumerate(data.parents)
                 if row in set(data.whole.tolist())}  # fmt: skip
    assert all(text in by_parent[parent] for text, parent in
               zip(data.texts, data.parents, strict=True))  # fmt: skip
    train, held = sentences.split(data, 0)
    assert not set(train.parents.tolist()) & set(held.parents.tolist())
    assert (len(train), len(held)) == (216, 24)
    other, _ = sentences.split(data, 1)
    assert other.texts != train.texts
    assert sentences.split(data, 0)[0].texts == train.texts


@pytest.mark.parametrize(
    ("text", "fault"),
    [("good\t1\n", "first line"), ("sentence\tlabel\nno tab\n", "line 2"),
     ("sentence\tlabel\na\t1\nb\tgood\n", "line 3")],
)  # fmt: skip
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=fault):
        sentences.load([path])


def test_batches_hold_every_row_once_and_of_about_one_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 2000)
    made = sentences.batches(lengths, 16, 0, 0)
    assert sorted(np.concatenate(made).tolist()) == list(range(2000))
    spread = np.mean([np.ptp(lengths[rows]) for rows in made])
    assert spread < 8
    assert any((a.tolist() != b.tolist()) for a, b in
               zip(made, sentences.batches(lengths, 16, 0, 1), strict=True))  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    monkeypatch.setattr(plan_sst2, "WORDS_KNOWN", 200)
    small = replace(plan_sst2.MODEL, vocabulary=200, dim=16, depth=4, heads=2, hidden=32,
                    exits=(1, 2, 3))  # fmt: skip
    monkeypatch.setattr(plan_sst2, "MODEL", small)
    monkeypatch.setattr(plan_sst2, "LAYERS", {"dimec": Layers(2, 3, 4), "dimee": Layers(1, 3, 4)})
    monkeypatch.setattr(bert, "BATCH", 32)
    table(tmp_path / "train.tsv")
    table(tmp_path / "dev.tsv", 1)
    (tmp_path / "out").mkdir()
    return Job((tmp_path,), tmp_path / "out", 0, Budget(steps=40), False)


def test_all_stages_make_a_profile_that_is_served(job: Job) -> None:
    for stage in plan_sst2.STAGES.values():
        stage(job)
    assert len(list((job.out / "dynamics").glob("*.npy"))) == bert.NOTES
    made = profiles.load(publish.PROFILES / "sst2")
    assert made.manifest.task == "classify-text"
    present = {file.path for file in made.manifest.files}
    server = strategies(Serving(made))
    for name in ("dimec", "dimee"):
        device = registry.load("device.strategies", name).create(
            Bundle(made.manifest, made.directory, present)
        )
        frame = Frame(0, "0", "film 3 is fine and warm , so moving", 0.0)
        query = next(device.infer(frame, Plan(name, {"route": "cloud"})))
        (outcome,) = server[name].forward([server[name].prepare(query, NOTHING)])
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)
        with pytest.raises(StopIteration) as stop:
            next(device.infer(frame, Plan(name, {"route": "mobile"})))
        assert stop.value.value.source == "device"
        assert sum(made.made[name]["pools"]) == pytest.approx(1, abs=1e-3)
        assert device.scores is not None
    three = made.made["three_exits"]
    assert three["layers"] == [2, 3, 4]
    assert len(three["held_out"]) == len(three["held_out_sentences"]) == 3


def test_it_learns(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "RECIPE", replace(bert.RECIPE, lr=5e-3, ema=0.0))
    plan_sst2.train_bert(job)
    assert job.recorded("bert")["held_out"][-1] > 0.8


def test_without_data_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        plan_sst2.train_bert(Job((), tmp_path, 0, None, False))
