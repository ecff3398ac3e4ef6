"""Adding to a profile directory keeps it loadable and leaves the rest as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common import profile
from profiles.amend import amend


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A profile with one strategy and no models."""
    made = tmp_path / "small"
    made.mkdir()
    raw = {
        "format": 1, "name": "small", "task": "classify", "classes": ["a", "b"],
        "input": {"height": 32, "width": 32, "channels": 3, "patch": 16},
        "models": {}, "strategies": {"jpeg": {"quality": 75}}, "device": {"files": []},
        "made": {"seed": 3},
    }  # fmt: skip
    (made / "profile.json").write_text(json.dumps(raw))
    return made


def test_amended_profile_loads_with_checked_files(directory: Path, tmp_path: Path) -> None:
    weights, graph = tmp_path / "w", tmp_path / "g"
    weights.write_bytes(b"weights")
    graph.write_bytes(b"graph")
    amend(
        directory,
        models={"light": (weights, {"layers": 3})},
        strategies={"jpeg": {"scale": 0.5}, "po": {"file": "device/po.onnx"}},
        files={"device/po.onnx": graph},
        made={"light": {"seconds": 1}},
    )
    loaded = profile.load(directory)
    assert loaded.models["light"].config == {"layers": 3}
    assert loaded.models["light"].file.read_bytes() == b"weights"
    assert loaded.manifest.params("jpeg") == {"quality": 75, "scale": 0.5}
    assert loaded.read("device/po.onnx") == b"graph"
    assert loaded.made == {"seed": 3, "light": {"seconds": 1}}


def test_amending_again_replaces(directory: Path, tmp_path: Path) -> None:
    graph = tmp_path / "g"
    for content in (b"one", b"second"):
        graph.write_bytes(content)
        amend(directory, files={"device/po.onnx": graph})
    (file,) = profile.load(directory).manifest.files
    assert file.size == 6
