"""DeepCOD on the device: the same symbols whatever computes them, and a code without loss."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import columns
from common.errors import ConfigError
from common.guess import allowed
from device import encoder
from device.encoder import Quantizer
from profiles.export_deepcod import kernel_of, numpy_file, onnx_file, tflite_file, whole
from profiles.train.deepcod import symbols, to_pictures
from server.models.deepcod import STEPS, DeepCOD, DeepCODConfig, snap

CONFIG = DeepCODConfig((224, 224), channels=12, kernel=8, levels=15, widths=(8, 8, 8))
FLIPPED = 0.005
"""Share of symbols that may differ between runtimes: values that lie between two centres."""


def frames(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Smooth noise, so that neighbours are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 3))
    smooth = (coarse + np.roll(coarse, 1, 1) + np.roll(coarse, 1, 2)) / 3
    fine = np.random.default_rng(seed + 1).integers(-20, 20, (count, 224, 224, 3))
    return (smooth.repeat(8, 1).repeat(8, 2) + fine).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> DeepCOD:
    torch.manual_seed(0)
    made = DeepCOD(CONFIG).eval()
    with torch.no_grad():
        made.quantizer.centres.copy_(torch.linspace(-2, 2, CONFIG.levels))
        made.mean.fill_(0.5)
        made.span.fill_(0.5)
    return snap(made)


@pytest.fixture(scope="module")
def files(model: DeepCOD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoder")
    seen = symbols(model, to_pictures(frames(20)))
    numpy_file(model, columns.trained(seen, CONFIG.levels), root / "e.npz")
    onnx_file(model, root / "e.onnx")
    tflite_file(model, root / "e.tflite")
    return root


@pytest.mark.parametrize("runtime", ["npz", "onnx", "tflite"])
def test_every_runtime_gives_the_symbols_of_torch(
    model: DeepCOD, files: Path, runtime: str
) -> None:
    if runtime != "npz":
        module = "onnxruntime" if runtime == "onnx" else "ai_edge_litert.interpreter"
        pytest.importorskip(module)
    path = None if runtime == "npz" else files / f"e.{runtime}"
    made = encoder.load(files / "e.npz", path)
    some = frames(4, seed=5)
    wanted = symbols(model, to_pictures(some))
    assert len(np.unique(wanted)) > 10
    for frame, right in zip(some, wanted, strict=True):
        found = made.symbols(frame)
        assert found.dtype == np.uint8
        assert found.shape == right.shape
        assert (found != right).mean() < FLIPPED
        y = model.encoder(model.scaled(to_pictures(frame[None])))[0].detach().numpy()
        np.testing.assert_allclose(made.convolve(frame), np.moveaxis(y, 0, -1), atol=2e-4)


def test_means_of_pixels_are_part_of_every_encoder(tmp_path: Path) -> None:
    half = snap(DeepCOD(replace(CONFIG, size=(112, 112))).eval())
    (frame,) = frames(1)
    x = torch.nn.functional.avg_pool2d(to_pictures(frame[None]), 2)
    with torch.no_grad():
        wanted = np.moveaxis(half._measured(x)[0].numpy(), 0, -1)
    some = columns.trained(symbols(half, x), CONFIG.levels)
    numpy_file(half, some, tmp_path / "e.npz", shrink=2)
    found = [encoder.load(tmp_path / "e.npz").convolve(frame)]
    for module, write, name in (
        ("onnxruntime", onnx_file, "e.onnx"),
        ("ai_edge_litert.interpreter", tflite_file, "e.tflite"),
    ):
        if importlib.util.find_spec(module.partition(".")[0]):
            write(half, tmp_path / name, shrink=2)
            found.append(encoder.load(tmp_path / "e.npz", tmp_path / name).convolve(frame))
    for each in found:
        np.testing.assert_allclose(each, wanted, atol=2e-4)


def test_the_kernel_of_a_frame_is_whole_numbers() -> None:
    free = DeepCOD(CONFIG).eval()
    with torch.no_grad():
        free.span.copy_(torch.tensor([0.31, 0.29, 0.4]))
        free.unit.fill_(7.3)
    before = free.plain().detach().clone()
    snap(free)
    step = before.abs().max() / STEPS
    assert float((free.plain().detach() - before).abs().max()) < 0.6 * float(step)
    kernel, _ = kernel_of(copy.deepcopy(free).half().float(), frames=True)  # as it is published
    numbers, factor = whole(kernel)
    assert np.abs(numbers.astype(int)).max() == STEPS
    np.testing.assert_allclose(kernel, numbers * factor, rtol=1e-5)
    np.testing.assert_allclose(255 * kernel, free.plain().detach().numpy(), atol=0.05 * float(step))


def test_the_files_are_small(files: Path) -> None:
    for path in files.iterdir():
        assert path.stat().st_size < 16_000


@pytest.mark.parametrize("guessed", [0, 5, 12])
def test_the_code_holds_the_symbols(files: Path, guessed: int) -> None:
    made = encoder.load(files / "e.npz")
    taps = np.random.default_rng(0).integers(-40, 40, (9 * guessed, guessed)).astype(np.int16)
    taps *= allowed(guessed)
    told = columns.ColumnBook.read({**made.book.tables, "taps": taps})
    made = encoder.Encoder(made.convolve, made.quantize, told)
    for frame in frames(3, seed=9):
        symbols = made.symbols(frame)
        code = made(frame)
        assert code == told.encode(symbols)
        assert np.array_equal(told.decode(code, 28, 28), symbols)


def test_sums_are_of_all_pixels() -> None:
    for side in (2, 3, 16):
        frame = np.random.default_rng(side).integers(250, 256, (2 * side, 3 * side, 3), np.uint8)
        wanted = frame.reshape(2, side, 3, side, 3).sum((1, 3))
        assert np.array_equal(encoder._sums(frame, side), wanted)


def test_what_is_no_encoder_is_named(tmp_path: Path, files: Path) -> None:
    (tmp_path / "e.npz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"e\.npz is no encoder"):
        encoder.load(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", kernel=np.zeros((8, 24, 2), np.float32))
    with pytest.raises(ConfigError, match=r"e\.npz is no encoder"):
        encoder.load(tmp_path / "e.npz")
    with np.load(files / "e.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "e.npz", **arrays | {"centres": np.zeros_like(arrays["centres"])})
    with pytest.raises(ConfigError, match="do not ascend"):
        encoder.load(tmp_path / "e.npz")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_the_table_is_exact(values: list[float], seed: int) -> None:
    centres = np.sort(np.array(values, dtype=np.float32))
    between = (centres[1:] + centres[:-1]) / 2
    rng = np.random.default_rng(seed)
    near = np.concatenate([between, np.nextafter(between, np.float32(-99)),
                           np.nextafter(between, np.float32(99))])  # fmt: skip
    y = np.concatenate([near, rng.uniform(-50, 50, 500)]).astype(np.float32)
    wanted = np.searchsorted(between, y, side="left")
    assert np.array_equal(Quantizer(centres)(y), wanted)
    assert np.array_equal(torch.bucketize(torch.from_numpy(y), torch.from_numpy(between)), wanted)
