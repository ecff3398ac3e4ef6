"""From what a source yields to what a profile's task asks about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError
from common.profile import Manifest
from device import picture
from device.strategy import Content, Pixels

Data = bytes | Path | Pixels
"""Encoded, in a file, or decoded already."""
Reader = Callable[[Data], Content]
"""Raises ValueError or OSError with a text for people."""


def reader(manifest: Manifest) -> Reader:
    """What decodes a source's data for this profile. Raises ConfigError: an unknown task."""
    if manifest.task != "classify":
        raise ConfigError(f"profile {manifest.name!r} is for the task {manifest.task!r}: update me")
    return pictures(manifest.input.height, manifest.input.width)


def pictures(height: int, width: int) -> Reader:
    """Pictures, fitted to the size."""

    def read(data: Data) -> Pixels:
        if isinstance(data, bytes | Path):
            return picture.load(data, height, width)
        return picture.fit(data, height, width)

    return read
