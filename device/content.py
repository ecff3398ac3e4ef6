"""From what a source yields to what a profile's task asks about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError
from common.profile import Input, Manifest
from device import picture
from device.strategy import Content, Pixels

Data = bytes | Path | Pixels
"""Encoded, in a file, or decoded already."""
Reader = Callable[[Data], Content]
"""Raises ValueError or OSError with a text for people."""


def reader(manifest: Manifest) -> Reader:
    """What decodes a source's data for this profile. Raises ConfigError: an unknown task."""
    if manifest.task not in READERS:
        raise ConfigError(
            f"profile {manifest.name!r} is for the task {manifest.task!r}, "
            f"this device knows {', '.join(READERS)}: update it"
        )
    return READERS[manifest.task](manifest.input)


def pictures(size: Input) -> Reader:
    """Pictures, fitted to the size."""

    def read(data: Data) -> Pixels:
        if isinstance(data, bytes | Path):
            return picture.load(data, size.height, size.width)
        return picture.fit(data, size.height, size.width)

    return read


READERS: dict[str, Callable[[Input], Reader]] = {"classify": pictures}
"""By the profile's task."""
