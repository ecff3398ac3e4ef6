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
    """The convolution by numpy: every place's values times `kernel` [*k, features, C]."""
    *sides, features, channels = kernel.shape
    tall, wide = (sides[0] if len(sides) == 2 else 1), sides[-1]
    flat = np.ascontiguousarray(kernel.reshape(-1, channels).T)

    def convolve(values: Values) -> F32:
        whole = _sums(values, shrink) if shrink > 1 else values
        *_, height, width, _ = (1, *whole.shape)
        rows, columns = height // tall, width // wide
        cells = whole.reshape(rows, tall, columns, wide * features).transpose(0, 2, 1, 3)
        places = cells.reshape(rows * columns, -1).astype(np.float32, copy=False)
        y: F32 = flat @ places.T
        y += bias[:, None]
        return y.reshape(channels, *((rows, columns) if len(sides) == 2 else (columns,)))

    return convolve


def _sums(frame: U8, side: int) -> F32:
    """The sums of `side` x `side` pixels of [H, W, features], side^2 times their means.

    Rows are added whole, then columns one feature at a time: long strides, no short inner loops.
    """
    height, width, features = frame.shape
    lines = frame.reshape(height, width * features)
    rows = lines[::side].astype(np.uint16)
    for row in range(1, side):
        rows += lines[row::side]
    columns = rows.reshape(-1, side * features)
    sums = np.empty((len(columns), features), dtype=np.float32)
    for feature in range(features):
        into = sums[:, feature]
        np.add(columns[:, feature], columns[:, features + feature], out=into, casting="unsafe")
        for column in range(2, side):
            into += columns[:, column * features + feature]
    return sums.reshape(height // side, width // side, features)
