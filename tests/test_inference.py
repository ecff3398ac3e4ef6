"""The local model behind one callable, and what is said where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from device import inference
from profiles.amend import PROFILES
from tests.device_stub import classify, local_model, shade


def test_an_onnx_model_gives_probabilities(tmp_path: Path) -> None:
    (tmp_path / "local.onnx").write_bytes(local_model())
    model = inference.load(tmp_path / "local.onnx")
    for label in range(4):
        probabilities = model(shade(label))
        assert probabilities.shape == (4,)
        assert probabilities.dtype == np.float32
        assert probabilities.argmax() == label == classify(shade(label)).argmax()


def test_a_tflite_model_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert.interpreter", reason="offboard[device-tflite] is missing")
    from tests import litert_stub

    (tmp_path / "local.onnx").write_bytes(local_model())
    (tmp_path / "local.tflite").write_bytes(litert_stub.local_model())
    one, other = (inference.load(tmp_path / f"local.{kind}") for kind in ("onnx", "tflite"))
    for label in range(4):
        probabilities = other(shade(label))
        assert probabilities.shape == (4,)
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities, one(shade(label)), atol=1e-5)
    first, kept = other(shade(0)), other(shade(0)).copy()
    other(shade(3))
    assert np.array_equal(first, kept)  # not a view of the interpreter's own memory
    (tmp_path / "local.tflite").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"local\.tflite cannot be loaded"):
        inference.load(tmp_path / "local.tflite")


def test_without_litert_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'offboard\[device-tflite\]'"):
        inference.load(tmp_path / "local.tflite")


def test_without_a_runtime_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'offboard\[device-onnx\]'"):
        inference.load(tmp_path / "local.onnx")


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "local.onnx").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"local\.onnx cannot be loaded"):
        inference.load(tmp_path / "local.onnx")
    with pytest.raises(ConfigError, match="a local model is"):
        inference.load(tmp_path / "local.pkl")


def test_a_model_of_other_names_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(local_model())
    model.graph.output[0].name = "scores"
    model.graph.node[-1].output[0] = "scores"
    onnx.save(model, tmp_path / "local.onnx")
    with pytest.raises(ConfigError, match="not 'frame' to 'probabilities'"):
        inference.load(tmp_path / "local.onnx")


def test_the_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry would leave an identifier and a database in the home directory."""
    (tmp_path / "local.onnx").write_bytes(local_model())
    home = tmp_path / "home"
    home.mkdir()
    script = "import sys, pathlib; from device import inference; "
    script += "inference.load(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "local.onnx")],
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
        env={"PATH": os.defpath, "HOME": str(home)},
    )
    assert not list(home.rglob("*"))


MEMORY = """
import sys
from pathlib import Path
import numpy as np, psutil
from device import heap, inference
heap.one_for_all_threads()
model = inference.load(Path(sys.argv[1]), "frame", "tokens")
opened = psutil.Process().memory_info().rss
for _ in range(20):
    model(np.zeros((224, 224, 3), np.uint8))
print((psutil.Process().memory_info().rss - opened) / 2**20)
"""


def test_a_model_keeps_little_of_what_it_computes_with() -> None:
    """The first layers of the photographs' transformer hold some 5 MB at a time."""
    graph = PROFILES / "imagenette" / "weights" / "vit-embed.onnx"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(graph)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 12.0


def test_a_program_may_have_registered_memory_of_its_own(tmp_path: Path) -> None:
    """Ours is then the one that it registered."""
    (tmp_path / "local.onnx").write_bytes(local_model())
    program = (
        "import sys, onnxruntime as ort; from pathlib import Path; import numpy as np;"
        "from device import inference;"
        "kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR;"
        "place = ort.OrtMemoryInfo('Cpu', kind, 0, ort.OrtMemType.DEFAULT);"
        "ort.create_and_register_allocator(place, ort.OrtArenaCfg(0, 1, -1, -1));"
        "print(inference.load(Path(sys.argv[1]))(np.zeros((64, 64, 3), np.uint8)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "local.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "(4,)\n"
