"""The super-resolution network: bicubic at first, any size, and what training makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from device.picture import fit as fit_picture
from profiles.train import superres
from profiles.train.loop import Budget, Tick
from server.models.checkpoint import load_model, save_weights
from server.models.superres import SuperResConfig, SuperResolution, resample

SMALL = SuperResConfig(width=8, blocks=1)


def stripes(count: int, side: int = 64) -> np.ndarray:
    """Sharp stripes uint8 [count, side, side, 3], each frame of its own slope and colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    frames = np.empty((count, side, side, 3), np.uint8)
    for frame in frames:
        slope, period = rng.uniform(-1, 1), rng.integers(10, 24)
        band = ((x + slope * y) % period < period / 2)[..., None]
        frame[:] = np.where(band, rng.integers(0, 120, 3), rng.integers(130, 256, 3))
    return frames


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (32, 20)])
def test_without_training_it_is_bicubic(size: tuple[int, int]) -> None:
    small = torch.rand(2, 3, 32, 20)
    assert torch.allclose(SuperResolution(SMALL)(small, *size), resample(small, *size), atol=1e-6)


def test_a_frame_of_the_right_size_stays_as_it_is() -> None:
    whole = torch.rand(1, 3, 24, 24)
    assert SuperResolution(SMALL)(whole, 24, 24) is whole


def test_it_restores_pixels_in_range() -> None:
    model = SuperResolution(SMALL)
    torch.nn.init.normal_(model.tail.weight, std=5.0)
    restored = model.restore(torch.rand(1, 3, 16, 16), 40, 40)
    assert restored.min() == 0
    assert restored.max() == 1


def test_the_served_network_is_small() -> None:
    size = sum(p.numel() for p in SuperResolution(SuperResConfig()).parameters())
    assert 50_000 < size < 300_000


def test_training_beats_bicubic_on_frames_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superres, "CROP", 32)
    frames = stripes(60)

    def batch(tick: Tick) -> np.ndarray:
        return frames[tick.indices]

    model, _ = superres.train(
        SMALL, batch, 50, tmp_path / "sr.ckpt", Budget(steps=150), seed=0, resume=False
    )
    figures = superres.fidelity(model, frames[50:], 0.5)
    assert figures["superres"] > figures["bicubic"] + 0.2

    save_weights(model, tmp_path / "sr.safetensors")
    loaded = load_model(tmp_path / "sr.safetensors", "superres", {"width": 8, "blocks": 1})
    small = superres.tensor(fit_picture(frames[0], 32, 32)[None])
    assert isinstance(loaded, SuperResolution)
    again = loaded.restore(small, 64, 64)
    assert torch.allclose(again, model.restore(small, 64, 64), atol=1e-2)
    with pytest.raises(ConfigError, match="does not fit"):
        load_model(tmp_path / "sr.safetensors", "superres", {"width": 16, "blocks": 1})


def test_half_of_the_crops_are_spoiled() -> None:
    frames, rng = stripes(8, 112), np.random.default_rng(1)
    sharp = superres.crops(frames, rng)
    assert sharp.shape == (8, superres.CROP, superres.CROP, 3)
    side = superres.CROP // 2
    spoiled = sum(
        not np.array_equal(superres.degraded(crop, side, rng), fit_picture(crop, side, side))
        for crop in np.repeat(sharp, 5, axis=0)
    )
    assert 8 <= spoiled <= 32
