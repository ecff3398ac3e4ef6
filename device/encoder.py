"""DeepCOD's encoder on the device: one convolution, a quantiser, an entropy code.

Yao et al., "Deep Compressive Offloading", SenSys 2020, figure 3. The convolution has its kernel as
its stride, so it is one matrix product of the kernel and every place's values: numpy does that as
fast as the runtimes do, which are there for devices that have an accelerator behind one.

The encoder's file, NAME.npz, holds "kernel" float32 [*k, features, C] with one or two k, "bias"
[C], "shrink" (how many pixels to a side it takes the mean of first), "centres" [L] ascending, and
the tables of `common.book`. NAME.onnx and NAME.tflite hold the convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.book import Book
from common.errors import ConfigError
from device import inference

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]
"""What is encoded: [*size, features] with one or two sides; a frame is uint8 [H, W, 3]."""
Convolution = Callable[[Values], F32]
"""[*size, features] -> float32 [C, *grid]."""
BINS = 4096


@dataclass(frozen=True, slots=True)
class Encoder:
    """`convolve`, `quantize`, `code`: what lies at an offloading point becomes bits."""

    convolve: Convolution
    quantize: Quantizer
    book: Book

    def symbols(self, values: Values) -> U8:
        """The symbols uint8 [C, *grid] of [*size, features]."""
        return self.quantize(self.convolve(values))

    def __call__(self, values: Values) -> bytes:
        """The code of its symbols."""
        return self.book.encode(self.symbols(values))


class Quantizer:
    """The nearest of `centres` [L], ascending; of two as near the lower one (equation 12).

    A table over BINS bins gives, for any value in a bin, a centre that is not too high; as many
    comparisons as a bin has boundaries between centres make it exact. That is several times faster
    than a search for every value.
    """

    def __init__(self, centres: F32) -> None:
        self._between = (centres[1:] + centres[:-1]) / 2
        low, high = float(self._between[0]), float(self._between[-1])
        # Bins far narrower than the values are large would fall to rounding.
        width = max(high - low, 0.01 * max(1.0, -low, high)) / (BINS - 2)
        self._scale, self._shift = np.float32(1 / width), np.float32(1 - low / width)
        # A value may be rounded into the bin beside its own, so a bin counts as three.
        edges = low + (np.arange(BINS + 2) - 2.0) * width
        below = np.searchsorted(self._between, edges).astype(np.uint8)
        self._low = below[:BINS]
        reach = np.append(below[3:], len(self._between))
        self._steps = int((reach - self._low[: len(reach)].astype(int)).max())
        self._above = np.append(self._between, np.inf).astype(np.float32)

    def __call__(self, y: F32) -> U8:
        """The index of the nearest centre, uint8, in the shape of `y`."""
        bins = y * self._scale
        bins += self._shift
        np.clip(bins, 0, BINS - 1, out=bins)
        found: U8 = self._low.take(bins.astype(np.int32))
        for _ in range(self._steps):
            found += y > self._above.take(found)
        return found


def load(weights: Path, model: Path | None = None) -> Encoder:
    """The encoder in `weights` (.npz), its convolution by numpy or by the `model` (.onnx, .tflite).

    Raises ConfigError: a file that is no encoder, no runtime.
    """
    try:
        with np.load(weights) as file:
            kernel, bias, centres = (file[name] for name in ("kernel", "bias", "centres"))
            shrink, book = int(file["shrink"]), Book.read(file)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{weights.name} is no encoder: {error}") from None
    convolve = by_matrix(kernel, bias, shrink) if model is None else by_runtime(model)
    return Encoder(convolve, Quantizer(centres), book)


def by_runtime(model: Path) -> Convolution:
    """The convolution in a model's file. Raises ConfigError: no runtime, not such a model."""
    run = inference.load(model, source="values", target="signal")
    if model.suffix == ".onnx":
        return run
    return lambda values: np.moveaxis(run(values), -1, 0)


def by_matrix(kernel: F32, bias: F32, shrink: int) -> Convolution:
    """The convolution by numpy: every place's values times `kernel` [*k, features, C].

    Row after row of the kernel, because those values lie side by side in memory.
    """
    *sides, features, channels = kernel.shape
    rows = np.ascontiguousarray(kernel.reshape(-1, sides[-1] * features, channels))

    def convolve(values: Values) -> F32:
        whole = _sums(values, shrink) if shrink > 1 else values
        if len(sides) == 1:
            whole = whole[None]
        height, width = whole.shape[0] // len(rows), whole.shape[1] // sides[-1]
        places = whole.reshape(height, len(rows), width, -1)
        y = np.zeros((height * width, channels), dtype=np.float32)
        for row, weights in enumerate(rows):
            part = places[:, row].reshape(height * width, -1)
            y += part.astype(np.float32, copy=False) @ weights
        y += bias
        grid = (height, width) if len(sides) == 2 else (width,)
        return np.ascontiguousarray(y.T).reshape(channels, *grid)

    return convolve


def _sums(frame: U8, side: int) -> npt.NDArray[np.uint16]:
    """The sums of `side` x `side` pixels of [H, W, features], side^2 times their means."""
    rows = frame[::side].astype(np.uint16)
    for row in range(1, side):
        rows += frame[row::side]
    sums = rows[:, ::side].copy()
    for column in range(1, side):
        sums += rows[:, column::side]
    return sums
