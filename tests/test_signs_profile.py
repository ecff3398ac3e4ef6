"""The profile ``signs`` as it lies in the repository: it loads, and it knows its signs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import profile as profiles_of
from profiles.train import evaluate, signs
from profiles.train.photos import Photos
from server.models.checkpoint import load_model
from server.models.mae import MaskedAutoencoder
from server.models.vit import VisionTransformer

COUNT = 40


@pytest.fixture(scope="module")
def scenes() -> Photos:
    rendered = [signs.render(seed) for seed in signs.EVALUATION[5_000 : 5_000 + COUNT]]
    return Photos(
        np.stack([frame for frame, _, _ in rendered]),
        np.array([label for _, label, _ in rendered]),
    )


def test_full_frames_are_known_and_a_second_round_helps(scenes: Photos) -> None:
    loaded = profiles_of.load("signs")
    assert loaded.manifest.classes == signs.CLASSES
    vit, mae = (
        load_model(loaded.models[key].file, loaded.models[key].kind, loaded.models[key].config)
        for key in ("vit", "mae")
    )
    assert isinstance(vit, VisionTransformer)
    assert isinstance(mae, MaskedAutoencoder)
    # The stated accuracy, less three standard deviations of so few scenes.
    stated = float(loaded.made["accuracy"]["full"])
    full = evaluate.full(vit, scenes)
    assert full >= stated - 3 * (stated * (1 - stated) / COUNT) ** 0.5
    torch.manual_seed(0)
    (rounds,) = evaluate.two_rounds(vit, mae, scenes, 0.15, [0.2])
    assert rounds.second.mean() > rounds.first.mean()


def test_the_device_model_knows_signs(scenes: Photos) -> None:
    runtime = pytest.importorskip("onnxruntime")
    loaded = profiles_of.load("signs")
    session = runtime.InferenceSession(
        loaded.read("device/local.onnx"), providers=["CPUExecutionProvider"]
    )
    (probabilities,) = session.run(["probabilities"], {"frame": scenes.frames})
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    assert (probabilities.argmax(1) == scenes.labels).mean() > 0.5
