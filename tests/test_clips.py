"""Clips: rendered, stored in three ways, read back, and made into tubelets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.errors import ConfigError
from common.profile import Input
from device import clip, content
from device.source import Shot, open_source
from profiles.train import clips
from profiles.train.patchwork import to_patches
from server.models.checkpoint import load_model
from server.models.vit import VisionTransformer, ViTConfig

SIZE = Input(clips.FRAMES * clips.SIDE, clips.SIDE, 3, 16)
CONFIG = ViTConfig(dim=12, depth=1, heads=2, classes=3, image=32, frames=6, tubelet=2)


def test_a_seed_is_a_clip_and_its_label() -> None:
    frames, label, places = clips.render(5)
    again, same, _ = clips.render(5)
    assert places.shape == (16, 3)
    assert frames.shape == (16, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, again)
    assert label == same
    assert {clips.render(seed)[1] for seed in range(200)} == set(range(len(clips.CLASSES)))


def test_every_motion_moves_and_its_reverse_is_the_other() -> None:
    """The centre of what changes between frames, at the end against the start."""
    assert [clips.CLASSES[back] for back in clips.BACKWARDS[:3]] == [
        f"{sign}, right" for sign in clips.SHOWN
    ]
    assert np.array_equal(clips.BACKWARDS[clips.BACKWARDS], np.arange(len(clips.CLASSES)))
    moved: dict[str, list[np.ndarray]] = {"left": [], "right": [], "up": [], "down": []}
    for seed in range(120):
        frames, label, _ = clips.render(seed)
        motion = clips.CLASSES[label].split(", ")[1]
        if motion in moved:
            light = frames.astype(float).mean(-1)
            change = np.abs(light - np.median(light, 0))
            start, end = (
                np.argwhere(part.mean(0) > 25).mean(0) for part in (change[:4], change[-4:])
            )
            moved[motion].append(end - start)
    y, x = np.transpose([np.nanmean(moved[motion], 0) for motion in moved])
    assert x[0] < -5 < 5 < x[1]
    assert y[2] < -5 < 5 < y[3]


def test_augmentation_keeps_labels_true() -> None:
    data, label, places = clips.render(1)
    frames = np.repeat(data.reshape(1, -1, 64, 3), 40, 0)
    batch = clips.Clips(frames, np.full(40, label), np.repeat(places[None], 40, 0))
    made = clips.augmented(batch, np.random.default_rng(0))
    assert set(made.labels) == {label, int(clips.BACKWARDS[label])}
    for each, made_label in zip(made.frames, made.labels, strict=True):
        run = each.reshape(16, 64, 64, 3)
        # However it is shifted, every frame keeps its pixels' sum.
        expected = data if made_label == label else data[::-1]
        assert np.array_equal(run.sum((1, 2, 3), dtype=int), expected.sum((1, 2, 3), dtype=int))


def test_a_tubelet_is_labelled_where_the_sign_moves() -> None:
    """A sign of 24 pixels in the middle of a patch, that jumps to another after four frames."""
    places = np.array([(24, 24, 24)] * 4 + [(56, 8, 24)] * 12, np.float32)
    one = clips.Clips(np.zeros((1, 1024, 64, 3), np.uint8), np.array([5]), places[None])
    cells = clips.tubelets(one).reshape(8, 4, 4)
    assert set(cells.ravel()) == {5, clips.BACKGROUND}
    # It reaches four pixels beyond its patch: a quarter of those beside it, too little of corners.
    cross = [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    corner = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert np.array_equal(cells == 5, np.array([cross] * 2 + [corner] * 6))


def test_a_folder_written_is_the_clip_read(tmp_path: Path) -> None:
    (folder,) = clips.write(tmp_path, [7])
    frames, label, _ = clips.render(7)
    assert clips.label_of(folder.name) == label
    assert np.array_equal(clip.load(folder, 16, 64), frames)


def test_npz_and_mjpeg_are_clips_too(tmp_path: Path) -> None:
    frames, *_ = clips.render(7)
    np.savez(tmp_path / "a.npz", frames=frames)
    assert np.array_equal(clip.load(tmp_path / "a.npz", 16, 64), frames)
    stream = io.BytesIO()
    for frame in frames:
        Image.fromarray(frame).save(stream, "JPEG", quality=95)
    (tmp_path / "b.mjpeg").write_bytes(stream.getvalue())
    near = clip.load(tmp_path / "b.mjpeg", 16, 64)
    assert near.shape == frames.shape
    assert np.abs(near.astype(int) - frames).mean() < 8


@pytest.mark.parametrize(
    ("length", "places"), [(4, [0, 1, 2, 3]), (7, [0, 2, 4, 6]), (2, [0, 0, 1, 1]), (1, [0] * 4)]
)
def test_frames_are_chosen_evenly(length: int, places: list[int]) -> None:
    assert clip.evenly(length, 4) == places
    frames = np.arange(length, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), np.uint8
    )
    assert [int(each[0, 0, 0]) for each in clip.fit(frames, 4, 8)] == places


def test_what_is_no_clip_is_said(tmp_path: Path) -> None:
    read = content.clips(SIZE)
    np.savez(tmp_path / "a.npz", pixels=np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"PK no")
    (tmp_path / "c.mjpeg").write_bytes(b"nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    for name in ("a.npz", "b.npz", "c.mjpeg", "d.png"):
        with pytest.raises(ValueError, match=r"clip|frames"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="clips:DIR"):
        read((tmp_path / "d.png").read_bytes())
    for wrong in (np.zeros((64, 64, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="a clip is uint8"):
            read(wrong)


def test_a_source_of_clips(tmp_path: Path) -> None:
    clips.write(tmp_path / "deep", [1, 2])
    np.savez(tmp_path / "z.npz", frames=clips.render(3)[0])
    source = open_source(f"clips:{tmp_path}")
    shots = list(source.shots())
    assert source.length == len(shots) == 3
    assert [Path(shot.name).name.split("-")[0] for shot in shots] == ["1", "2", "z.npz"]
    read = content.clips(SIZE)
    for shot, seed in zip(shots, (1, 2, 3), strict=True):
        assert np.array_equal(shot.frame(read).pixels, clips.render(seed)[0])
    assert [shot.name for shot in open_source(f"clips:{tmp_path / 'z.npz'}").shots()] == ["z.npz"]


@pytest.mark.parametrize("name", ["nothing", "empty", "file.png"])
def test_a_source_without_clips_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "file.png")
    with pytest.raises(ConfigError, match="there is no clip"):
        open_source(f"clips:{tmp_path / name}")


def test_models_look_at_its_frames_in_a_column() -> None:
    frames, *_ = clips.render(2)
    shot = Shot(0, "2", frames).frame(content.clips(SIZE))
    column = content.VIEWS["watch"](SIZE)(shot)
    assert column.shape == (1024, 64, 3)
    assert np.array_equal(column[64:128], frames[1])


def test_a_tubelet_is_what_a_published_convolution_takes(tmp_path: Path) -> None:
    """Weights [dim, 3, 2, 16, 16] of a checkpoint, against the convolution over the clip itself."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = VisionTransformer(CONFIG).state_dict()
    conv = nn.Conv3d(3, 12, (2, 16, 16), (2, 16, 16))
    state["patch_embed.proj.weight"] = conv.weight.detach()
    assert conv.bias is not None
    state["patch_embed.proj.bias"] = conv.bias.detach()
    save_file(state, tmp_path / "st.safetensors")
    vit = load_model(tmp_path / "st.safetensors", "vit", CONFIG)
    assert isinstance(vit, VisionTransformer)
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        clip_ = (torch.from_numpy(frames).float() / 255 - torch.tensor(CONFIG.mean)) / torch.tensor(
            CONFIG.std
        )
        expected = conv(clip_.permute(3, 0, 1, 2)[None]).flatten(2).transpose(1, 2)
        expected = expected + vit.pos_embed[:, 1:]
        got = vit.embed(to_patches(frames.reshape(1, -1, 32, 3)))[:, 1:]
    assert got.shape == (1, 12, 12)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="multiple of tubelet"):
        ViTConfig(dim=12, depth=1, heads=2, classes=3, frames=5, tubelet=2)
    with pytest.raises(ValueError, match="mixers"):
        ViTConfig(dim=12, depth=1, heads=2, classes=3, frames=4, stem="local", mixers=1)
    with pytest.raises(ValueError, match="all patches"):
        VisionTransformer(CONFIG).embed(torch.zeros(1, 2, 768), torch.zeros(1, 2, dtype=torch.long))
