"""Sound files to samples: PCM wav of 8 or 16 bits, mono or stereo, at any usual rate."""

from __future__ import annotations

import io
import math
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.sound import LONGEST, RATE, expand
from device.strategy import Samples

RATES = (4000, 192_000)
"""The lowest and the highest rate that is read, samples per second."""


def load(data: bytes | bytearray | memoryview | Path) -> Samples:
    """The sound in `data` (or in a file) as float32 [n] in [-1, 1] at `common.sound.RATE`.

    Raises ValueError with a text for people if it is none, OSError if the file cannot be read.
    """
    if isinstance(data, Path):
        data = data.read_bytes()
    if not data:
        raise ValueError("the file is empty")
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count, *_ = file.getparams()
            _check(channels, width, rate, count)
            pcm = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"this is no wav file that can be read: {error or 'cut short'}") from None
    if len(pcm) != count * channels * width:
        raise ValueError("this wav file is cut short: record or copy it again")
    if width == 2:
        values = expand(np.frombuffer(pcm, "<i2").astype(np.int16))
    else:
        values = (np.frombuffer(pcm, np.uint8) - np.float32(128)) / np.float32(128)
    return resample(values.reshape(-1, channels).mean(1), rate, RATE)


def resample(samples: npt.NDArray[np.float32], rate: int, target: int) -> Samples:
    """`samples` [n] at `rate` as [about n * target / rate] at `target`, without aliases.

    The spectrum is cut off or filled up with zeros; zeros at the end make the lengths whole.
    """
    if rate == target:
        return np.ascontiguousarray(samples, np.float32)
    common = math.gcd(rate, target)
    old, new = rate // common, target // common
    blocks = -(-len(samples) // old)
    spectrum = np.fft.rfft(samples, blocks * old)
    kept = min(len(spectrum), blocks * new // 2 + 1)
    changed = np.fft.irfft(spectrum[:kept], blocks * new) * (new / old)
    length = -(-len(samples) * target // rate)
    return np.clip(changed[:length], -1, 1).astype(np.float32)


def _check(channels: int, width: int, rate: int, count: int) -> None:
    """Raises ValueError for a format that is not read; before the samples take any memory."""
    if width not in (1, 2):
        raise ValueError(f"a wav file of {8 * width} bits: give 8 or 16 (as `sox -b 16` makes)")
    if channels not in (1, 2):
        raise ValueError(f"a wav file of {channels} channels: give one or two")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"a wav file of {rate} Hz: give one from {RATES[0]} to {RATES[1]}")
    if count == 0:
        raise ValueError("the wav file holds no sound")
    if count * RATE > LONGEST * rate:
        seconds, most = count / rate, LONGEST / RATE
        raise ValueError(f"{seconds:.0f} s are too long: cut the sound to at most {most:.0f} s")
