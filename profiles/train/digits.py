"""Spoken digits in the public layout of the Free Spoken Digit Dataset, and their augmentation.

A data set is a tar file or a folder that holds ``{digit}_{speaker}_{take}.wav``. Takes 0-4 of every
speaker are the test set by its authors' rule, 5-49 the training set; of those the last ones are
held out here, to choose by.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.sound import RATE, features
from device import sound
from device.strategy import Samples

U8 = npt.NDArray[np.uint8]
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BANDS, FRAMES = 32, 80
TEST, CHOOSING = range(5), range(45, 50)
"""Takes that report and takes that choose; training has neither."""
NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")


@dataclass(frozen=True)
class Spoken:
    """Sounds, float32 [n] each, their labels int64 [count], and their files' names."""

    sounds: tuple[Samples, ...]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sounds)

    def seen(self) -> U8:
        """Their features [count, bands, frames, 1]."""
        return np.stack([features(each, BANDS, FRAMES) for each in self.sounds])


def take_of(name: str) -> int | None:
    """The number of a recording's take; None for another file's name."""
    found = NAME.fullmatch(Path(name).name)
    return int(found[3]) if found else None


def load(sources: Sequence[Path], takes: Sequence[int]) -> Spoken:
    """The recordings of ``takes``, in the order of their names, from the first source that has any.

    Raises ValueError if none has, or a file is no sound; OSError if one cannot be read.
    """
    wanted = frozenset(takes)
    for source in sources:
        found = sorted((Path(name).name, blob) for name, blob in _files(source, wanted))
        if found:
            names = tuple(name for name, _ in found)
            labels = np.array([int(name[0]) for name in names], dtype=np.int64)
            return Spoken(tuple(_decoded(name, blob) for name, blob in found), labels, names)
    raise ValueError(
        f"{', '.join(map(str, sources)) or 'no --data'}: give a tar file or folder with "
        "{digit}_{speaker}_{take}.wav of the Free Spoken Digit Dataset"
    )


def training(sources: Sequence[Path]) -> Spoken:
    """What models learn from."""
    return load(sources, range(TEST.stop, CHOOSING.start))


def choosing(sources: Sequence[Path]) -> Spoken:
    """What settings are chosen on."""
    return load(sources, CHOOSING)


def varied(samples: Samples, rng: np.random.Generator) -> Samples:
    """``samples`` spoken a little faster or slower, elsewhere, in another room's noise."""
    count = len(samples)
    speed = rng.uniform(0.85, 1.15)
    places = np.arange(0, count - 1, speed)
    changed = np.interp(places, np.arange(count), samples)
    before, after = (np.zeros(int(rng.integers(0, RATE // 8))) for _ in range(2))
    whole = np.concatenate((before, changed, after))
    level = np.sqrt(np.square(changed).mean()) * 10 ** (rng.uniform(-60, -15) / 20)
    noise = rng.standard_normal(len(whole)) * level
    if rng.random() < 0.5:  # of a room rather than of a wire: more of it is low
        noise = np.cumsum(noise - noise.mean())
        noise *= level / max(float(noise.std()), 1e-9)
    return np.asarray(whole + noise, np.float32)


def masked(seen: U8, rng: np.random.Generator) -> U8:
    """Features with a few bands and a few frames black, and moved (SpecAugment, Park et al. 2019).

    They are [bands, frames, 1].
    """
    out: U8 = np.roll(seen, int(rng.integers(-6, 7)), axis=1)
    bands, frames, _ = out.shape
    for axis, most, size in ((0, 6, bands), (1, 12, frames)):
        width = int(rng.integers(0, most + 1))
        first = int(rng.integers(0, size - width + 1))
        out[(slice(None),) * axis + (slice(first, first + width),)] = 0
    return out


def augmented(spoken: Spoken, places: npt.NDArray[np.int64], rng: np.random.Generator) -> U8:
    """Features [n, bands, frames, 1] of the sounds at ``places``, varied and masked."""
    sounds = (varied(spoken.sounds[place], rng) for place in places)
    return np.stack([masked(features(each, BANDS, FRAMES), rng) for each in sounds])


def _decoded(name: str, blob: bytes) -> Samples:
    try:
        return sound.load(blob)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _files(source: Path, takes: frozenset[int]) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.rglob("*.wav"):
            if take_of(path.name) in takes:
                yield path.name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            handle = archive.extractfile(member) if take_of(member.name) in takes else None
            if handle is not None:
                yield member.name, handle.read()
