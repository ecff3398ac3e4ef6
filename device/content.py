"""From what a source yields to what a profile's task asks about, and to what its models look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from common.errors import ConfigError
from common.profile import Input, Manifest
from common.sound import LONGEST, features
from device import clip, picture, sound, text
from device.strategy import Content, Frame, Pixels, Samples

Data = bytes | Path | Pixels | Samples
"""Encoded, in a file, or decoded already."""
Reader = Callable[[Data], Content]
"""Raises ValueError or OSError with a text for people."""
View = Callable[[Frame], Pixels]
"""What a profile's models look at, uint8 [height, width, channels] of its input."""
T = TypeVar("T")


def reader(manifest: Manifest) -> Reader:
    """What decodes a source's data for this profile. Raises ConfigError: an unknown task."""
    return _of(READERS, manifest)(manifest.input)


def view(manifest: Manifest) -> View:
    """What models look at of a frame: its pixels, a sound's features, a clip's frames in a column.

    Raises ConfigError: an unknown task, or one whose models look at no picture.
    """
    return _of(VIEWS, manifest)(manifest.input)


def signal(manifest: Manifest) -> View:
    """What a codec takes of a frame, [*size, features]: of a sound it is [frames, bands].

    Raises ConfigError as `view` does.
    """
    see = view(manifest)
    if manifest.task != "listen":
        return see
    return lambda frame: np.ascontiguousarray(see(frame)[:, :, 0].T)


def blank(manifest: Manifest) -> Content:
    """Content that says nothing, to run a model on. Raises ConfigError: an unknown task."""
    return _of(BLANKS, manifest)(manifest.input)


def _of(table: Mapping[str, T], manifest: Manifest) -> T:
    if manifest.task not in table:
        raise ConfigError(
            f"profile {manifest.name!r} is for the task {manifest.task!r}, "
            f"this device knows {', '.join(table)}: update it"
        )
    return table[manifest.task]


def pictures(size: Input) -> Reader:
    """Pictures, fitted to the size."""

    def read(data: Data) -> Pixels:
        if isinstance(data, bytes | Path):
            return picture.load(data, size.height, size.width)
        return picture.fit(cast(Pixels, data), size.height, size.width)

    return read


def sounds(size: Input) -> Reader:
    """Sounds as they are; the strategies decide what of them is needed."""

    def read(data: Data) -> Samples:
        if isinstance(data, bytes | Path):
            return sound.load(data)
        if data.dtype != np.float32 or data.ndim != 1 or not 0 < len(data) <= LONGEST:
            raise ValueError(f"a sound is float32 [n], n to {LONGEST}, not {data.dtype} "
                             f"{list(data.shape)}")  # fmt: skip
        return cast(Samples, data)

    return read


def clips(size: Input) -> Reader:
    """Clips of square frames, as many as lie below each other in the picture that models see."""
    count, side = size.height // size.width, size.width

    def read(data: Data) -> Pixels:
        if isinstance(data, Path):
            return clip.load(data, count, side)
        if isinstance(data, bytes):
            raise ValueError(f"a picture is no clip: {clip.HINT}")
        return clip.fit(data, count, side)

    return read


def sentences(size: Input) -> Reader:
    """Sentences, whatever their length; the strategies make words of them."""

    def read(data: Data) -> str:
        if isinstance(data, bytes | Path):
            return text.load(data)
        raise ValueError("a sentence is text, not an array")

    return read


def _zeros(size: Input) -> Pixels:
    return np.zeros((size.height, size.width, size.channels), np.uint8)


def _still(size: Input) -> Pixels:
    side = size.width
    return np.zeros((size.height // side, side, side, size.channels), np.uint8)


TEXT = "classify-text"
READERS: dict[str, Callable[[Input], Reader]] = {
    "classify": pictures,
    "listen": sounds,
    "watch": clips,
    TEXT: sentences,
}
"""By the profile's task."""
VIEWS: dict[str, Callable[[Input], View]] = {
    "classify": lambda size: lambda frame: frame.pixels,
    "listen": lambda size: lambda frame: features(frame.samples, size.height, size.width),
    "watch": lambda size: lambda frame: frame.pixels.reshape(size.height, size.width, -1),
}
BLANKS: dict[str, Callable[[Input], Content]] = {
    "classify": _zeros,
    "listen": lambda size: np.zeros(1, np.float32),
    "watch": _still,
    TEXT: lambda size: "",
}
