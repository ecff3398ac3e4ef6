"""Offload-AE+: the auto-encoder, its training, and its encoder on the device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.profile import load
from device import inference
from profiles.train import publish
from profiles.train.autoencoder import FILE, WEIGHTS, encoder_onnx, fidelity, stage, train
from profiles.train.deepcod import to_signal
from profiles.train.job import Job
from profiles.train.loop import Budget
from profiles.train.photos import Photos
from server.models.autoencoder import AutoEncoder, AutoEncoderConfig
from server.models.checkpoint import load_model, save_weights
from tests.profiles import tiny

SMALL = AutoEncoderConfig((32, 32), 4, 6, (8, 8), (8, 8, 4), (1, 1))


def pictures(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth frames uint8 [count, 32, 32, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 16, 16, 1), np.uint8))


def test_training_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    frames = pictures(4)
    torch.manual_seed(0)
    before = fidelity(AutoEncoder(SMALL), frames)
    model, _ = train(SMALL, frames, tmp_path / "a.ckpt", Budget(steps=150), 0, False)
    assert fidelity(model, frames) > before + 2
    again, _ = train(SMALL, frames, tmp_path / "a.ckpt", Budget(steps=150), 0, True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    assert (model.quantizer.centres.diff() > 0).all()


def test_the_device_computes_what_the_server_would(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_weights(AutoEncoder(SMALL), tmp_path / "a.safetensors")
    model = load_model(tmp_path / "a.safetensors", "autoencoder", asdict(SMALL))
    assert isinstance(model, AutoEncoder)
    path, macs = encoder_onnx(model, tmp_path / "a.safetensors")
    assert path.stat().st_size < 8_000  # it holds no weights
    run = inference.load(path, target="signal")
    (frame,) = pictures(1)
    with torch.inference_mode():
        wanted = model.encoder(to_signal(frame[None]))[0].numpy()
        restored = model.decode(model.encode(to_signal(frame[None])))
    np.testing.assert_allclose(run(frame), wanted, atol=1e-5)
    assert restored.shape == (1, 3, 16, 16)
    # 5x5 convolutions at strides 2, 4 and 8, and a residual block at 4.
    assert macs == 16 * 16 * 8 * 75 + 8 * 8 * 8 * (200 + 2 * 72) + 4 * 4 * 4 * 200


def test_a_shape_that_does_not_fit_is_refused() -> None:
    for wrong in ({"size": (30, 32)}, {"size": (32, 32), "levels": 1}):
        with pytest.raises(ValueError, match="multiples of 8"):
            AutoEncoderConfig(**wrong)


def test_the_stage_adds_it_to_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny(tmp_path)
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    frames = np.repeat(np.repeat(pictures(4), 2, 1), 2, 2)
    job = Job((), tmp_path / "out", 0, Budget(steps=2), False)
    (tmp_path / "out").mkdir()
    config = AutoEncoderConfig((64, 64), 4, 6, (8, 8), (8, 8, 4), (1, 1))
    stage(job, "tiny", config, frames, Photos(frames, np.zeros(4, np.int64)))
    profile = load(root)
    assert profile.models["autoencoder"].config["channels"] == 4
    assert {FILE, WEIGHTS} <= {file.path for file in profile.manifest.files}
    assert profile.made["autoencoder"]["psnr"] > 0
