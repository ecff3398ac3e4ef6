"""Sounds as a recogniser sees them: log-mel features as a grey picture, of whatever is loudest.

Both sides and the training compute features by this one function, so a sound gives the same ones
wherever that happens. Samples are float32 [n] in [-1, 1] at RATE: telephone quality, which is what
speech needs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

RATE = 8000
"""Samples per second."""
LONGEST = 10 * RATE
"""Samples of the longest sound."""
WINDOW, HOP, FFT = 200, 80, 256
"""Samples of a window (25 ms), from one to the next (10 ms: a frame), and of its transform."""
RANGE = 60.0
"""Decibels below the loudest feature at which black begins."""
QUIET = 1e-4
"""The energy of a frame, of the loudest one's, below which there is silence before and after."""
MU = 255.0

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def features(samples: F32, bands: int, frames: int) -> U8:
    """uint8 [bands, frames, 1], low bands first: decibels of RANGE below the loudest one.

    Hann windows, power spectra, triangular filters evenly spaced in mel up to half of RATE. The
    level of the recording makes no difference.
    """
    piece = cut(samples, frames)
    windows = np.lib.stride_tricks.sliding_window_view(piece, WINDOW)[::HOP]
    spectra = np.fft.rfft(windows * _hann(), FFT)
    power = (spectra.real**2 + spectra.imag**2) @ filters(bands)
    loudest = float(power.max())
    if not loudest:
        return np.zeros((bands, frames, 1), np.uint8)
    decibels = 10 * np.log10(np.maximum(power / loudest, 10 ** (-RANGE / 10)))
    grey = np.rint((decibels / RANGE + 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(grey.T)[:, :, None]


def cut(samples: F32, frames: int) -> F32:
    """The samples of `frames` frames: the sound without the silence around it, in the middle.

    What is shorter is padded with zeros; of what is longer, the stretch of most energy stays.
    """
    length = (frames - 1) * HOP + WINDOW
    count = max(1, -(-len(samples) // HOP))
    padded = np.zeros(count * HOP, np.float32)
    padded[: len(samples)] = samples
    energy = np.square(padded.reshape(count, HOP), dtype=np.float64).sum(1)
    loud = np.flatnonzero(energy >= QUIET * energy.max())
    first, last = int(loud[0]), int(loud[-1]) + 1
    if last - first > frames:
        sums = np.concatenate(([0.0], energy.cumsum()))
        first = int(np.argmax(sums[frames:] - sums[:-frames]))
        last = first + frames
    start = (first + last) * HOP // 2 - length // 2
    piece = np.zeros(length, np.float32)
    low, high = max(0, start), min(len(samples), start + length)
    piece[low - start : high - start] = samples[low:high]
    return piece


@lru_cache(maxsize=4)
def filters(bands: int) -> F32:
    """Weights [FFT / 2 + 1, bands] of triangles evenly spaced in mel (O'Shaughnessy 1987)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def to_int16(samples: F32) -> npt.NDArray[np.int16]:
    """Samples as 16-bit numbers."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def compress(samples: F32) -> U8:
    """Samples at 8 bits each, finer where they are quiet: the mu-law curve (ITU-T G.711)."""
    curved = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
    coded: U8 = np.clip(np.rint(curved * 127 + 128), 0, 255).astype(np.uint8)
    return coded


def expand(coded: npt.NDArray[np.int16] | U8) -> F32:
    """Samples again, from `to_int16` or, where they are uint8, from `compress`."""
    if coded.dtype == np.int16:
        return coded.astype(np.float32) / np.float32(32768)
    curved = (coded.astype(np.float32) - 128) / 127
    return np.asarray(np.sign(curved) * np.expm1(np.abs(curved) * np.log1p(MU)) / MU, np.float32)


@lru_cache(maxsize=1)
def _hann() -> F32:
    return np.hanning(WINDOW + 1)[:-1].astype(np.float32)
