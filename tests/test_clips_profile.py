"""The published profile of clips, from a folder of frames through the real pair to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import pair
from common import profile as profiles_of
from device.bundle import Bundle
from device.strategies import janus
from device.strategy import Frame, Plan
from profiles.train import clips, signs

SEEDS = signs.CALIBRATION[5000:5012]
"""Clips that nothing was trained, chosen or reported on."""


def test_motion_is_told_after_any_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    folders = clips.write(tmp_path / "clips", SEEDS)
    truth = {path.name: clips.CLASSES[clips.label_of(path.name)] for path in folders}
    with pair.server("clips") as address:
        rows = pair.stream(
            address, Path(f"clips:{tmp_path / 'clips'}"), "janus", {"split": 2, "alpha": 0.5}
        )
    assert [row["frame"] for row in rows] == sorted(truth)
    assert all(row["source"] == "edge" and row["bytes_up"] > 1000 for row in rows)
    assert sum(row["label"] == truth[row["frame"]] for row in rows) >= 9


def test_a_clip_backwards_is_the_other_motion() -> None:
    """The same frames in the other order: no single one of them tells the class."""
    profile = profiles_of.load("clips")
    present = {file.path for file in profile.manifest.files}
    device = janus.create(Bundle(profile.manifest, profile.directory, present))
    layers = len(profile.manifest.params("janus")["blocks"])

    def told(frames: clips.U8) -> str | None:
        try:
            next(device.infer(Frame(0, "0", frames, 0.0), Plan("janus", {"split": layers + 1})))
        except StopIteration as stop:
            label: str = stop.value.label
            return label
        return None

    right = 0
    for seed in SEEDS:
        frames, label, _ = clips.render(seed)
        there, back = told(frames), told(frames[::-1].copy())
        right += there == clips.CLASSES[label] and back == clips.CLASSES[clips.BACKWARDS[label]]
    assert right >= 9
