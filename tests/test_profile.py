import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from common import profile
from common.errors import ConfigError


def write(directory: Path, **changes: Any) -> Path:
    """A small profile directory; `changes` replace fields of its profile.json."""
    for name in ("weights/vit.safetensors", "device/local.onnx"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode())
    digests = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("weights/vit.safetensors", "device/local.onnx")
    }
    raw = {
        "format": 1,
        "name": "tiny",
        "task": "classify",
        "classes": ["stop", "yield"],
        "input": {"height": 224, "width": 224, "channels": 3, "patch": 16},
        "models": {
            "vit": {
                "kind": "vit",
                "file": "weights/vit.safetensors",
                "sha256": digests["weights/vit.safetensors"],
                "config": {"dim": 8},
            }
        },
        "strategies": {"amot": {"r1": 0.15}, "raw": {}},
        "device": {
            "files": [
                {
                    "path": "device/local.onnx",
                    "sha256": digests["device/local.onnx"],
                    "size": len("device/local.onnx"),
                }
            ]
        },
        "made": {"seed": 0},
    }
    raw.update(changes)
    (directory / "profile.json").write_text(json.dumps(raw))
    return directory


def test_a_directory_loads_whole(tmp_path: Path) -> None:
    loaded = profile.load(write(tmp_path))
    assert loaded.name == "tiny"
    assert loaded.manifest.classes == ("stop", "yield")
    assert loaded.manifest.input.patches == 196
    assert loaded.models["vit"].file == tmp_path / "weights/vit.safetensors"
    assert loaded.read("device/local.onnx") == b"device/local.onnx"
    assert loaded.made == {"seed": 0}


def test_the_manifest_survives_the_wire_with_its_digest(tmp_path: Path) -> None:
    manifest = profile.load(write(tmp_path)).manifest
    back = profile.Manifest.from_bytes(manifest.to_bytes())
    assert back == manifest
    assert back.digest == manifest.digest


def test_the_digest_follows_what_a_device_needs_and_nothing_else(tmp_path: Path) -> None:
    first = profile.load(write(tmp_path)).manifest.digest
    same = profile.load(write(tmp_path, made={"seed": 1})).manifest.digest
    other = profile.load(write(tmp_path, strategies={"amot": {"r1": 0.2}})).manifest.digest
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"classes": None}, "lacks or misuses"),
        ({"input": {"height": 224}}, "lacks or misuses"),
        ({"models": {"vit": {"kind": "vit"}}}, "lacks or misuses"),
        (
            {"device": {"files": [{"path": "../../etc/passwd", "sha256": "", "size": 1}]}},
            "leads out",
        ),
        (
            {"device": {"files": [{"path": "device/gone", "sha256": "", "size": 1}]}},
            "is missing",
        ),
    ],
)
def test_a_bad_profile_says_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        profile.load(write(tmp_path, **change))


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "weights/vit.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match="sha256 differs"):
        profile.load(tmp_path)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no profile 'sings'"):
        profile.load("sings")


def test_only_files_of_the_manifest_are_read(tmp_path: Path) -> None:
    loaded = profile.load(write(tmp_path))
    with pytest.raises(ConfigError, match="no device file"):
        loaded.read("profile.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff"])
def test_junk_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no device manifest"):
        profile.Manifest.from_bytes(data)


def test_an_unknown_strategy_names_the_offered_ones(tmp_path: Path) -> None:
    manifest = profile.load(write(tmp_path)).manifest
    assert manifest.params("amot") == {"r1": 0.15}
    with pytest.raises(ConfigError, match=r"does not offer 'janus'.*amot, raw"):
        manifest.params("janus")
