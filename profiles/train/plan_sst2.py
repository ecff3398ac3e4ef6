"""The stages that make the profile ``sst2``: sentences, positive or negative, by three tiers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from profiles import export_tiers
from profiles.amend import amend
from profiles.export_tiers import EXITS, FRONT, WORDS, layer_file
from profiles.look import look
from profiles.pools import Costs, Layers
from profiles.train import bert, pooling, publish, sentences, vocabulary
from profiles.train.job import Job, Stage
from profiles.train.sentences import Sentences
from server.models.bert import Bert, BertConfig, Layer
from server.models.checkpoint import load_model, save_weights

NAME = "sst2"
CLASSES = ("negative", "positive")
POSITIONS = 64
WORDS_KNOWN = 5000
WORDS_FILE = "tokenizer.json"
MODEL = BertConfig(
    vocabulary=WORDS_KNOWN, dim=96, depth=12, heads=4, hidden=192, positions=POSITIONS, types=1,
    classes=len(CLASSES), exits=tuple(range(1, 12)), pool="mean", dropout=0.1,
)  # fmt: skip
MINUTES = 11.5
LAYERS = {"dimec": Layers(4, 6, 12), "dimee": Layers(3, 6, 12)}
"""m, n and l of the papers' BERT-base."""
COSTS = Costs()
HELD = ("train.tsv", "dev.tsv")


def _split(job: Job) -> tuple[Sentences, Sentences]:
    """Training and validation. Raises ValueError without data."""
    if not job.data:
        raise ValueError("give --data with a folder that has train.tsv and dev.tsv of SST-2")
    files = [path for each in job.data for path in _files(each)]
    return sentences.split(sentences.load(files), job.seed)


def _files(path: Path) -> list[Path]:
    return [path / name for name in HELD] if path.is_dir() else [path]


def train_bert(job: Job) -> None:
    """The vocabulary and the encoder, with an exit behind every layer."""
    train, held = _split(job)
    words = vocabulary.train(train.texts, WORDS_KNOWN, POSITIONS)
    words.save(str(job.out / WORDS_FILE), pretty=False)
    _fit(job, "bert", MODEL, words, job.out / "dynamics", train, held)


def train_three(job: Job) -> None:
    """The encoder again with the three exits of DIMEC-DC alone: what sharing one model costs it.

    It is compared and not published; the profile's record keeps the figures.
    """
    train, held = _split(job)
    layers = LAYERS["dimec"]
    config = replace(MODEL, exits=(layers.mobile, layers.edge))
    words = Tokenizer.from_file(str(job.out / WORDS_FILE))
    _fit(job, "three", config, words, job.out / "dynamics-three", train, held)
    record = {"layers": list(layers.tiers()), **job.recorded("three")}
    amend(publish.PROFILES / NAME, made={"three_exits": record})


def _fit(
    job: Job, stage: str, config: BertConfig, words: Tokenizer, dynamics: Path,
    train: Sentences, held: Sentences,
) -> None:  # fmt: skip
    # Whole sentences are what people ask about, and one in ten of the rows: they count twice.
    rows = np.concatenate((np.arange(len(train)), train.whole))
    texts = [train.texts[row] for row in rows]
    ids, shown = (vocabulary.ids(words, each) for each in (texts, held.texts))
    model, seconds = bert.train(
        config, ids, train.labels[rows], shown, dynamics, job.checkpoint(stage),
        job.minutes(MINUTES), job.seed, job.resume,
    )  # fmt: skip
    export_tiers.round_words(model)  # as the device has them
    save_weights(model, job.weights(stage))
    right = bert.probabilities(model, shown).argmax(-1) == held.labels
    job.record(
        stage, seconds, held_out=[round(float(each), 4) for each in right.mean(1)],
        held_out_sentences=[round(float(each), 4) for each in right[:, held.whole].mean(1)],
    )  # fmt: skip


def make_profile(job: Job) -> None:
    """Publish what the training left; the next stage adds the pools."""
    target = publish.PROFILES / NAME
    target.mkdir(parents=True, exist_ok=True)
    most = _export(job)
    record = job.recorded("bert")
    document = {
        "format": 1,
        "name": NAME,
        "task": "classify-text",
        "classes": list(CLASSES),
        "input": {"height": 1, "width": POSITIONS, "channels": 1, "patch": 1},
        "models": {},
        "strategies": {},
        "device": {"files": []},
        "made": {
            "data": "GLUE SST-2's training set, phrases and sentences: nine in ten sentences with "
            "their phrases train, the others are the validation split",
            "command": f"./run train all {NAME} --data sst2",
            "seed": job.seed,
            "seconds": {"bert": record["seconds"]},
            "hardware": publish.hardware(),
            "accuracy": {
                "frames": "the validation split, in torch, behind each layer",
                "phrases": record["held_out"],
                "sentences": record["held_out_sentences"],
            },
            "date": datetime.now(UTC).date().isoformat(),
        },
    }
    (target / "profile.json").write_text(json.dumps(document))
    files = {place: job.out / place for place in (FRONT, EXITS)}
    files |= {WORDS: job.out / WORDS_FILE}
    files |= {layer_file(place): job.out / layer_file(place) for place in range(1, most + 1)}
    strategies = {
        name: {
            "mobile": layers.mobile, "edge": layers.edge, "front": FRONT, "words": WORDS,
            "exits": EXITS,
            "blocks": [layer_file(place) for place in range(1, layers.mobile + 1)],
        }
        for name, layers in LAYERS.items()
    }  # fmt: skip
    amend(
        target, models={"bert": (job.weights("bert"), asdict(MODEL))}, strategies=strategies,
        files=files,
    )  # fmt: skip


def _export(job: Job) -> int:
    """Write the device's files from the trained weights; returns how many layers it has."""
    model = load_model(job.weights("bert"), "bert", asdict(MODEL))
    assert isinstance(model, Bert)
    most = max(layers.mobile for layers in LAYERS.values())
    export_tiers.front_npz(model, job.out / FRONT)
    export_tiers.exits_npz(model, most, job.out / EXITS)
    for place, layer in enumerate(model.encoder.layer[:most], start=1):
        assert isinstance(layer, Layer)
        export_tiers.layer_onnx(layer, job.out / layer_file(place))
    return most


def make_pools(job: Job) -> None:
    """The offline phase of both strategies on the validation split."""
    _, held = _split(job)
    target = publish.PROFILES / NAME
    kept = sorted((job.out / "dynamics").glob("*.npy"), key=lambda path: int(path.stem))
    dynamics = np.stack([np.load(path).astype(np.float32) for path in kept])
    truth = np.take_along_axis(dynamics, held.labels[None, None, :, None], 3)[..., 0]
    pooling.stage(
        target, job.out, look(target, held.texts, held.labels), held.parents,
        {name: truth[:, layers.mobile - 1] for name, layers in LAYERS.items()}, LAYERS, COSTS,
        job.seed,
    )  # fmt: skip


STAGES: dict[str, Stage] = {
    "bert": train_bert, "publish": make_profile, "pools": make_pools, "three": train_three,
}  # fmt: skip
