"""The renderer of sign scenes: deterministic, varied, labelled; and it needs no torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profiles.train import signs
from profiles.train.scenes import BACKGROUND, cells_of


def test_a_seed_gives_one_scene() -> None:
    frame, label, box = signs.render(5)
    again, same, where = signs.render(5)
    assert frame.shape == (224, 224, 3)
    assert frame.dtype == np.uint8
    assert (label, box) == (same, where)
    assert np.array_equal(frame, again)
    assert not np.array_equal(frame, signs.render(6)[0])


def test_scenes_vary_in_class_size_and_light() -> None:
    scenes = [signs.render(seed) for seed in range(120)]
    assert len(signs.CLASSES) >= 12
    assert len({label for _, label, _ in scenes}) >= len(signs.CLASSES) - 2
    sizes = [max(right - left, bottom - top) for _, _, (left, top, right, bottom) in scenes]
    assert min(sizes) >= 32
    assert sum(size < 60 for size in sizes) >= 20
    assert sum(size > 110 for size in sizes) >= 20
    means = [frame.mean() for frame, _, _ in scenes]
    assert min(means) < 60
    assert max(means) > 140


def test_the_sign_stands_in_its_box() -> None:
    """Outside its box, a scene hardly depends on which sign it shows; inside it does."""
    for seed in range(8):
        frame, _, (left, top, right, bottom) = signs.render(seed)
        assert 0 <= left < right <= 224
        assert 0 <= top < bottom <= 224
        assert frame[top:bottom, left:right].std() > 4


def test_no_two_classes_look_alike() -> None:
    from profiles.train.glyphs import sign

    pictures = [np.asarray(sign(label), dtype=float) for label in range(len(signs.CLASSES))]
    for a, first in enumerate(pictures):
        for second in pictures[a + 1 :]:
            assert np.abs(first - second).mean() > 2


def test_seeds_are_divided() -> None:
    parts = [set(r[:: len(r) - 1]) for r in (signs.TRAINING, signs.CALIBRATION, signs.EVALUATION)]
    bounds = sorted((min(p), max(p)) for p in parts)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(bounds))


def test_written_files_keep_pixels_and_label(tmp_path: Path) -> None:
    paths = signs.write(tmp_path / "frames", [3, 2_000_001])
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == sorted(
        path.name for path in paths
    )
    for path, seed in zip(paths, (3, 2_000_001), strict=True):
        frame, label, _ = signs.render(seed)
        assert path.name == f"{seed}-{signs.slug(label)}.png"
        assert signs.label_of(path.name) == label
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), frame)
    with pytest.raises(ValueError, match="not in tuple"):
        signs.label_of("7-unknown.png")


def test_patches_under_the_box_carry_the_label() -> None:
    cells = cells_of(3, (32, 16, 64, 40)).reshape(14, 14)
    assert (cells[1, 2:4] == 3).all()
    assert (cells[2, 2:4] == 3).all()
    assert (cells != BACKGROUND).sum() == 4
    # A quarter of a patch is enough, less is not.
    assert cells_of(1, (0, 0, 8, 8))[0] == 1
    assert cells_of(1, (0, 0, 8, 7))[0] == BACKGROUND


def test_rendering_loads_no_torch() -> None:
    code = (
        "import sys; import profiles.train.signs as s; s.render(1); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
