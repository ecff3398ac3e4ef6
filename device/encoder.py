"""DeepCOD's encoder on the device: one convolution, a quantiser, an entropy code.

Yao et al., "Deep Compressive Offloading", SenSys 2020, figure 3. The convolution has its kernel as
its stride, so it is one matrix product of the kernel and every place's pixels: numpy does that as
fast as the runtimes do, which are there for devices that have an accelerator behind one.

The encoder's file, NAME.npz, holds "kernel" float32 [k, k * channels, C] for pixels 0-255, "bias"
[C], "centres" [L] ascending, and "lengths" uint8 [C, L * L], the code book. NAME.onnx and
NAME.tflite hold the convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from common.huffman import Book
from device import inference
from device.strategy import Pixels

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Convolution = Callable[[Pixels], F32]
"""uint8 [H, W, 3] -> float32 [C, H / k, W / k]."""
BINS = 4096


@dataclass(frozen=True, slots=True)
class Encoder:
    """`convolve`, `quantize`, `code`: a frame becomes bits."""

    convolve: Convolution
    quantize: Quantizer
    book: Book

    def symbols(self, pixels: Pixels) -> U8:
        """The symbols uint8 [C, h, w] of a frame uint8 [H, W, 3]."""
        return self.quantize(self.convolve(pixels))

    def __call__(self, pixels: Pixels) -> bytes:
        """The code of a frame's symbols."""
        symbols = self.symbols(pixels)
        return self.book.encode(symbols.reshape(len(symbols), -1))


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
        bins = np.clip(y * self._scale + self._shift, 0, BINS - 1).astype(np.intp)
        found: U8 = self._low[bins]
        for _ in range(self._steps):
            found += y > self._above[found]
        return found


def load(weights: Path, model: Path | None = None) -> Encoder:
    """The encoder in `weights` (.npz), its convolution by numpy or by the `model` (.onnx, .tflite).

    Raises ConfigError: a file that is no encoder, no runtime.
    """
    try:
        with np.load(weights) as file:
            kernel, bias, centres = (file[name] for name in ("kernel", "bias", "centres"))
            book = Book(file["lengths"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{weights.name} is no encoder: {error}") from None
    return Encoder(_convolution(kernel, bias, model), Quantizer(centres), book)


def _convolution(kernel: F32, bias: F32, model: Path | None) -> Convolution:
    if model is None:
        return by_matrix(kernel, bias)
    run = inference.load(model, target="signal")
    if model.suffix == ".onnx":
        return run
    return lambda pixels: run(pixels).transpose(2, 0, 1)


def by_matrix(kernel: F32, bias: F32) -> Convolution:
    """The convolution by numpy: every place's pixels times `kernel` [k, k * 3, C]."""
    side, width, channels = kernel.shape
    flat = np.ascontiguousarray(kernel.reshape(side * width, channels).T)

    def convolve(pixels: Pixels) -> F32:
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
        places = pixels.reshape(rows, side, columns, width).transpose(1, 3, 0, 2)
        values = flat @ places.reshape(side * width, rows * columns).astype(np.float32)
        values += bias[:, None]
        return values.reshape(channels, rows, columns)

    return convolve
