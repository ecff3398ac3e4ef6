"""What merging and coarser tokens cost: the same photographs, answered in pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from profiles import merged
from profiles.train.photos import Photos
from server.models.vit import VisionTransformer, ViTConfig


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(dim=32, depth=2, heads=2, classes=3, image=64)
    return VisionTransformer(config).eval().requires_grad_(False)


@pytest.fixture
def data() -> Photos:
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (7, 64, 64, 3), np.uint8)
    return Photos(frames, random.integers(0, 3, 7))


def test_a_pair_tells_what_changed_and_how_surely() -> None:
    paired = merged.Paired()
    labels, exact = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 1])
    paired.add(labels, exact, {"same": exact, "other": torch.tensor([0, 2, 2, 0])})
    assert paired.cells("same") == "50.00% | 0 | 0 | +0.00 ± 0.00"
    # Two gained, one lost of four: a mean of 1/4 of +1, +1, -1 and 0, its deviation by sqrt(4).
    error = 100 * np.std([1, 1, -1, 0]) / 2
    assert paired.cells("other") == f"75.00% | 2 | 1 | +25.00 ± {error:.2f}"


def test_every_schedule_stands_beside_no_merging(vit: VisionTransformer, data: Photos) -> None:
    rows = [row.split(" | ") for row in merged.schedules_table(vit, data).splitlines()[2:]]
    assert {row[0].split()[1] for row in rows} == {"alpha", "fixed", "linear"}
    name, merges, left, away, *_, points = rows[0]
    assert (name, merges, left, away) == ("| alpha 0", "0 0", "17", "0.0%")
    assert points == "+0.00 ± 0.00 |"
    assert all(int(row[2]) < 17 for row in rows[1:])


def test_fp16_tokens_are_as_good_as_exact_ones(vit: VisionTransformer, data: Photos) -> None:
    rows = merged.tokens_table(vit, data, [0.0, 1.0]).splitlines()[2:]
    ways = [row.split(" | ")[1] for row in rows]
    assert ways == [f"split {s}, {p}" for s in (1, 2) for p in ("int8", "fp16")] * 2
    assert all("| 0 | 0 | +0.00" in row for row in rows if "fp16" in row)


def test_frames_as_jpeg_stand_beside_exact_ones(vit: VisionTransformer, data: Photos) -> None:
    rows = merged.frames_table(vit, data, [0.0, 1.0]).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["JPEG 90", "JPEG 75", "JPEG 50"] * 2
    flat = Photos(np.full_like(data.frames, 128), data.labels)
    assert all(
        "| 0 | 0 | +0.00" in row for row in merged.frames_table(vit, flat, [0.0]).splitlines()[2:]
    )


def test_tokens_arrive_as_the_server_reads_them(vit: VisionTransformer, data: Photos) -> None:
    start = merged._start(vit, data.frames)
    exact = vit.embed(merged.to_patches(data.frames))
    for precision, error in (("fp16", 2e-3), ("int8", 2e-2)):
        tokens, sizes = merged._sent(start, precision)
        assert torch.allclose(tokens, exact, atol=error * float(exact.abs().max()))
        assert not torch.equal(tokens, exact)
        assert torch.equal(sizes, start[1])
