"""The training loop, its resumption, the data it reads, and the settings it chooses."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from profiles.train import augment, evaluate, photos
from profiles.train.loop import Budget, Recipe, Tick, batch_indices, fit
from profiles.train.patchwork import recovered, some, to_patches
from server.models.mae import MAEConfig, MaskedAutoencoder
from server.models.vit import VisionTransformer, ViTConfig

RECIPE = Recipe(lr=0.01, batch=8, ema=0.9)


def run(folder: Path, steps: int, stop_after: int | None = None, resume: bool = False) -> nn.Module:
    """Fit a small network with dropout and batch norm to noise."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 4))).float()

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        noise = torch.from_numpy(tick.rng.normal(size=(8, 4))).float()
        value = (model(data[tick.indices] + noise) - 3).square().mean()
        return value, {"loss": float(value.detach())}

    fit(
        model, loss, RECIPE, Budget(steps=steps), 30, seed=5, checkpoint=folder / "x.ckpt",
        resume=resume, stop_after=stop_after,
    )  # fmt: skip
    return model


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", 12).state_dict()
    stopped = run(tmp_path / "b", 12, stop_after=5).state_dict()
    assert any(not torch.equal(whole[name], stopped[name]) for name in whole)
    resumed = run(tmp_path / "b", 12, resume=True).state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_training_lowers_the_loss_and_keeps_the_average(tmp_path: Path) -> None:
    model = run(tmp_path, 60)
    with torch.no_grad():
        assert float((model(torch.zeros(1, 4)) - 3).abs()) < 2.5
    last = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(model.state_dict()["0.weight"], last["average"]["0.weight"])
    assert not torch.equal(last["model"]["0.weight"], last["average"]["0.weight"])


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 2)
    with pytest.raises(ValueError, match="seed 5, not 6"):
        fit(
            nn.Linear(1, 1), lambda _: (torch.zeros(()), {}), RECIPE, Budget(steps=1), 8, seed=6,
            checkpoint=tmp_path / "x.ckpt", resume=True,
        )  # fmt: skip


def test_an_epoch_shows_every_sample_once() -> None:
    seen = np.concatenate([batch_indices(24, 8, 0, step) for step in range(3)])
    assert sorted(seen) == list(range(24))
    again = np.concatenate([batch_indices(24, 8, 0, step) for step in range(3, 6)])
    assert sorted(again) == list(range(24))
    assert not np.array_equal(batch_indices(24, 8, 0, 0), batch_indices(24, 8, 0, 3))
    assert len(batch_indices(3, 8, 0, 0)) == 3


def test_a_budget_is_steps_or_minutes() -> None:
    assert Budget(minutes=2).progress(999, 60) == 0.5
    assert Budget(steps=10).progress(5, 999) == 0.5
    for wrong in ({}, {"steps": 1, "minutes": 1.0}):
        with pytest.raises(ValueError, match="steps or of minutes"):
            Budget(**wrong)  # type: ignore[arg-type]


def jpeg(side: tuple[int, int], grey: bool) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if grey else "RGB", side, 90).save(buffer, "JPEG")
    return buffer.getvalue()


def dataset(root: Path) -> tuple[Path, Path]:
    """The same few photographs as a folder and as a tar file."""
    files = {
        "imagenette/train/n03888257/b.JPEG": jpeg((224, 224), True),
        "imagenette/train/n01440764/a.JPEG": jpeg((300, 250), False),
        "imagenette/val/n01440764/c.JPEG": jpeg((224, 224), False),
    }
    for name, blob in files.items():
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    with tarfile.open(root / "set.tar", "w") as archive:
        archive.add(root / "folder" / "imagenette", "imagenette")
    return root / "folder", root / "set.tar"


def test_photographs_load_from_folder_and_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    for source in dataset(tmp_path):
        for _ in range(2):  # decoded, then from the cache
            found = photos.load([source], "train")
            assert found.frames.shape == (2, 224, 224, 3)
            assert list(found.labels) == [0, 9]
            assert abs(int(found.frames[1, 0, 0, 0]) - 90) < 4
        assert len(photos.load([source], "val")) == 1
        with pytest.raises(ValueError, match="no photographs under test"):
            photos.load([source], "test")


def test_the_held_out_photographs_are_fixed_and_apart() -> None:
    many = photos.Photos(np.zeros((3000, 1, 1, 3), np.uint8), np.zeros(3000, np.int64))
    chosen, held = photos.split_off(many)
    assert len(held) == photos.HELD_OUT
    assert sorted([*chosen, *held]) == list(range(3000))
    assert np.array_equal(photos.split_off(many)[1], held)


def test_crops_keep_their_colour_and_lie_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = augment.random_box(rng, 224, (0.25, 1.0))
        assert 0 <= left < right <= 224 + 1e-6
        assert 0 <= top < bottom <= 224 + 1e-6
    frames = np.zeros((4, 224, 224, 3), np.uint8)
    frames[..., 1] = 200
    out = augment.random_crops(rng, frames, 96, (0.25, 1.0))
    assert out.shape == (4, 96, 96, 3)
    assert (out == (0, 200, 0)).all()


def test_patches_are_row_by_row_with_the_channel_fastest() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    patches = to_patches(frame)
    assert patches.shape == (1, 6, 768)
    expected = frame[0, 16:32, 32:48].reshape(-1).astype(np.float32) / 255
    np.testing.assert_allclose(patches[0, 5].numpy(), expected, rtol=1e-6)


TINY_VIT = ViTConfig(dim=16, depth=1, heads=2, classes=3, image=64)
TINY_MAE = MAEConfig(
    dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2, image=64
)


def tiny_photos(count: int) -> photos.Photos:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return photos.Photos(frames, rng.integers(0, 3, count))


def test_recovered_frames_keep_the_share_that_was_sent() -> None:
    torch.manual_seed(0)
    patches = to_patches(tiny_photos(3).frames)
    out = recovered(MaskedAutoencoder(TINY_MAE).eval(), patches, 0.25)
    same = (out == patches).all(-1).sum(1)
    assert list(same) == [4, 4, 4]
    places = some(5, 16, 4)
    assert places.shape == (4, 5)
    assert (places.diff(dim=1) > 0).all()


def test_two_rounds_at_every_threshold() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(TINY_VIT).eval()
    nn.init.normal_(vit.head.weight)
    mae = MaskedAutoencoder(TINY_MAE).eval()
    data = tiny_photos(20)
    (small, whole) = evaluate.two_rounds(vit, mae, data, 0.25, [0.25, 0.75])
    assert np.array_equal(small.first, whole.first)
    # All patches sent: the second round sees what the full frame shows.
    never = evaluate.at(whole, 0.25, 0.75, 0.0)
    always = evaluate.at(whole, 0.25, 0.75, 1.1)
    assert (never.rounds, never.share) == (1.0, 0.25)
    assert (always.rounds, always.share) == (2.0, 1.0)
    assert always.accuracy == pytest.approx(evaluate.full(vit, data))
    assert evaluate.one_round(vit, mae, data, 1.0) == pytest.approx(always.accuracy)


def test_the_choice_is_the_most_accurate_that_is_small_enough() -> None:
    def choice(accuracy: float, share: float) -> evaluate.Choice:
        return evaluate.Choice(0.1, 0.1, 0.8, accuracy, share, 1.5)

    found = [choice(0.9, 0.5), choice(0.8, 0.3), choice(0.8, 0.25), choice(0.7, 0.1)]
    assert evaluate.choose(found, 0.3) is found[2]
    with pytest.raises(ValueError, match="at most 5%"):
        evaluate.choose(found, 0.05)
