"""A profile of text small enough for tests: the layout of the real one, random weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from common.profile import FORMAT, Profile, load
from device.bundle import Bundle
from profiles import export_tiers, pools
from profiles.amend import amend
from profiles.export_tiers import EXITS, FRONT, WORDS, layer_file
from profiles.train import vocabulary
from server.models.bert import Bert, BertConfig, Layer
from server.models.checkpoint import load_model, save_weights

SENTENCES = (
    "a fine film that is good and warm",
    "a dull and tired film",
    "good , warm and bright",
    "tired jokes and dull music",
    "i do n't like it",
    "it is n't bad",
)
MODEL = BertConfig(
    vocabulary=120, dim=16, depth=4, heads=2, hidden=32, positions=12, types=1, classes=2,
    exits=(1, 2, 3), pool="mean",
)  # fmt: skip
MOBILE, EDGE = 2, 3


def tiny_text(directory: Path, seed: int = 0) -> Profile:
    """Make the profile "words" in ``directory`` / "words"."""
    root, out = directory / "words", directory / "out"
    for folder in (root, out):
        folder.mkdir(parents=True)
    words = vocabulary.train(SENTENCES * 5, MODEL.vocabulary, MODEL.positions)
    (out / "device").mkdir()
    words.save(str(out / WORDS))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Bert(MODEL)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    export_tiers.round_words(model)
    save_weights(model, out / "bert.safetensors")
    made = load_model(out / "bert.safetensors", "bert", asdict(MODEL))
    assert isinstance(made, Bert)
    export_tiers.front_npz(made, out / FRONT)
    export_tiers.exits_npz(made, MOBILE, out / EXITS)
    for place in range(1, MOBILE + 1):
        layer = made.encoder.layer[place - 1]
        assert isinstance(layer, Layer)
        export_tiers.layer_onnx(layer, out / layer_file(place))
    means = np.stack([np.full(MODEL.dim, level) for level in (-9.0, 0.0, 9.0)])
    pools.save(out / "device/pools.npz", means, np.array([10, 10, 10]))
    document = {
        "format": FORMAT,
        "name": "words",
        "task": "classify-text",
        "classes": ["negative", "positive"],
        "input": {"height": 1, "width": MODEL.positions, "channels": 1, "patch": 1},
        "models": {},
        "strategies": {},
        "device": {"files": []},
        "made": {},
    }
    (root / "profile.json").write_text(json.dumps(document))
    layers = [layer_file(place) for place in range(1, MOBILE + 1)]
    params = {
        "mobile": MOBILE, "edge": EDGE, "front": FRONT, "words": WORDS, "exits": EXITS,
        "tiers": "device/pools.npz", "blocks": layers,
    }  # fmt: skip
    files = (FRONT, EXITS, WORDS, "device/pools.npz", *layers)
    amend(
        root, models={"bert": (out / "bert.safetensors", asdict(MODEL))},
        strategies={"dimec": params, "dimee": {**params, "alpha": 0.9}},
        files={name: out / name for name in files},
    )  # fmt: skip
    return load(root)


def bundle(profile: Profile) -> Bundle:
    """All of the profile's files, as a device has them."""
    present = {file.path for file in profile.manifest.files}
    return Bundle(profile.manifest, profile.directory, present)
