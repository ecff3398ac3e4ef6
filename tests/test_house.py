"""The house itself: names, registry, size, and what the device must not import."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from common import registry
from common.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
OURS = ("bench", "common", "device", "profiles", "server")


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_owns_our_names(name: str) -> None:
    assert set(packages_distributions().get(name, ["offboard"])) == {"offboard"}
    module = __import__(name)
    assert Path(str(module.__file__)).is_relative_to(ROOT)


@pytest.mark.parametrize("side", ["device", "server"])
def test_the_folder_is_the_registry(side: str) -> None:
    package = f"{side}.strategies"
    found = registry.names(package)
    assert {"amot", "jpeg", "raw"} <= set(found)
    files = (ROOT / side / "strategies").glob("[!_]*.py")
    assert sorted(found) == sorted(path.stem for path in files)
    for name in found:
        assert callable(registry.load(package, name).create)


def test_the_two_sides_know_the_same_strategies_but_for_local() -> None:
    device = set(registry.names("device.strategies"))
    assert device - set(registry.names("server.strategies")) == {"local"}


@pytest.mark.parametrize("name", ["os", "", "../amot", "amot.x", "__init__"])
def test_a_name_that_is_not_in_the_folder_is_never_imported(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown strategy"):
        registry.load("device.strategies", name)


@pytest.mark.parametrize("module", ["device.device", "common.client", "profiles.train.signs"])
def test_no_torch_on_the_device(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'onnxruntime'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_profiles_stay_within_forty_megabytes() -> None:
    kinds = {".safetensors", ".onnx", ".tflite", ".npz", ".json"}
    made = [path for path in (ROOT / "profiles").rglob("*") if path.suffix in kinds]
    assert made
    assert sum(path.stat().st_size for path in made) <= 40_000_000
