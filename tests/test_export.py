"""The device's model as ONNX: the same answers as torch, loadable by old runtimes, small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from profiles.export import INPUT, OUTPUT, local_onnx
from profiles.train.local import LocalNet, halve


def trained_looking(classes: int) -> LocalNet:
    """A network whose batch norms have moved away from their initial statistics."""
    torch.manual_seed(0)
    model = LocalNet(classes)
    for norm in model.norms:
        assert isinstance(norm, torch.nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.3, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def test_onnx_answers_as_torch_does(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = trained_looking(7)
    path = tmp_path / "device" / "local.onnx"
    local_onnx(model, path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    (got,) = session.run([OUTPUT], {INPUT: frames})
    with torch.no_grad():
        expected = model(halve(frames)).softmax(1).numpy()
    assert got.shape == (3, 7)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected) > 0.05
    (one,) = session.run([OUTPUT], {INPUT: frames[:1]})
    np.testing.assert_allclose(one[0], got[0], atol=1e-5)


def test_the_file_is_small_and_old_enough(tmp_path: Path) -> None:
    path = tmp_path / "local.onnx"
    local_onnx(trained_looking(16), path)
    assert path.stat().st_size < 1_000_000
    model = onnx.load(path)
    assert model.ir_version <= 8
    assert all(opset.version <= 18 for opset in model.opset_import)
