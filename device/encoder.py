"""DeepCOD's encoder on the device: one convolution, a quantiser, an entropy code.

Yao et al., "Deep Compressive Offloading", SenSys 2020, figure 3. The convolution has its kernel as
its stride, so it is one matrix product of the kernel and every place's values: numpy does that as
fast as the runtimes do, which are there for devices that have an accelerator behind one.

The encoder's file, NAME.npz, holds "kernel" float32 [*k, features, C] with one or two k, "bias"
[C], "shrink" (how many pixels to a side it takes the mean of first), "centres" [L] ascending, and
the tables of `common.columns`. NAME.onnx and NAME.tflite hold the convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.columns import ColumnBook
from common.errors import ConfigError
from device import inference

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]
"""What is encoded: [*size, features] with one or two sides; a frame is uint8 [H, W, 3]."""
Convolution = Callable[[Values], F32]
"""[*size, features] -> float32 [*grid, C], an array of its own."""
BINS = 4096


class Encoder:
    """`convolve`, `quantize`, `book`: what lies at an offloading point becomes bits.

    Raises ValueError if centres cannot be told apart.
    """

    def __init__(self, convolve: Convolution, quantize: Quantizer, book: ColumnBook) -> None:
        self.convolve, self.quantize, self.book = convolve, quantize, book
        if not np.array_equal(quantize(quantize.centres), np.arange(len(quantize.centres))):
            raise ValueError("its centres do not ascend")
        self._above, self._below = quantize.bounds[book.zeros], quantize.bounds[book.zeros + 1]

    def symbols(self, values: Values) -> U8:
        """The symbols uint8 [C, *grid] of [*size, features]."""
        return np.ascontiguousarray(np.moveaxis(self.quantize(self.convolve(values)), -1, 0))

    def __call__(self, values: Values) -> bytes:
        """The code of its symbols, which are found only where they are not their channel's zero."""
        y, quantize, guess = self.convolve(values), self.quantize, self.book.guess
        # The difference that a symbol is coded by takes its place, as the centre it stands for.
        guessed = y[..., : guess.channels]
        guessed[:] = quantize.centres.take(guess.differences(quantize(guessed)))
        told = y > self._below
        told |= y <= self._above
        return self.book.code(told, lambda at: quantize(y.take(at, mode="clip")))


class Quantizer:
    """The nearest of `centres` [L], ascending; of two as near the lower one (equation 12).

    A table over BINS bins gives, for any value in a bin, a centre that is not too high; as many
    comparisons as a bin has boundaries between centres make it exact. That is several times faster
    than a search for every value.

    `bounds` [L + 1]: symbol i is above the i-th of them and not above the next.
    """

    def __init__(self, centres: F32) -> None:
        self.centres = centres
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
        self.bounds = np.concatenate(([-np.inf], self._between, [np.inf])).astype(np.float32)
        self._above = self.bounds[1:]

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
            kernel, bias, shrink = file["kernel"], file["bias"], int(file["shrink"])
            convolve = by_matrix(kernel, bias, shrink) if model is None else by_runtime(model)
            return Encoder(convolve, Quantizer(file["centres"]), ColumnBook.read(file))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{weights.name} is no encoder: {error}") from None


def by_runtime(model: Path) -> Convolution:
    """The convolution in a model's file. Raises ConfigError: no runtime, not such a model."""
    return inference.load(model, source="values", target="signal")


def by_matrix(kernel: F32, bias: F32, shrink: int) -> Convolution:
    """The convolution by numpy: every place's values times `kernel` [*k, features, C]."""
    *sides, features, channels = kernel.shape
    tall, wide = (sides[0] if len(sides) == 2 else 1), sides[-1]
    flat = np.ascontiguousarray(kernel.reshape(-1, channels))

    def convolve(values: Values) -> F32:
        whole = _sums(values, shrink) if shrink > 1 else values
        *_, height, width, _ = (1, *whole.shape)
        rows, columns = height // tall, width // wide
        places = np.empty((rows, columns, tall, wide * features), dtype=np.float32)
        places[...] = whole.reshape(rows, tall, columns, -1).transpose(0, 2, 1, 3)
        y: F32 = places.reshape(rows * columns, -1) @ flat
        y += bias
        return y.reshape(*((rows, columns) if len(sides) == 2 else (columns,)), channels)

    return convolve


def _sums(frame: U8, side: int) -> npt.NDArray[np.uint16]:
    """The sums of `side` x `side` pixels (up to 16) of [H, W, features], side^2 times their means.

    Rows are added whole, then pixels beside each other, all at once: most of those sums are of no
    use, but long runs of them take less time than short ones.
    """
    height, width, features = frame.shape
    lines = frame.reshape(height, width * features)
    rows = lines[::side].astype(np.uint16)
    for row in range(1, side):
        rows += lines[row::side]
    flat = rows.reshape(-1)
    beside = flat.copy()
    for column in range(1, side):
        beside[: -column * features] += flat[column * features :]
    sums = np.empty((len(flat) // (side * features), features), dtype=np.uint16)
    for feature in range(features):
        sums[:, feature] = beside[feature :: side * features]
    return sums.reshape(height // side, width // side, features)
