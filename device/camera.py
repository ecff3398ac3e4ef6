"""Cameras and video files, through OpenCV (the `camera` extra)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from device.source import Shot, Source


def open_camera(text: str) -> Source:
    """The live source `camera:N`, N a V4L2 number. Raises ConfigError if it will not open."""
    number = text.removeprefix("camera:")
    if not number.isdecimal():
        raise ConfigError(f"--source {text!r}: the camera's number is missing, as in camera:0")
    capture = _opened(int(number), f"camera {number} (/dev/video{number})")

    def shots() -> Iterator[Shot]:
        return _shots(capture, live=True)

    return Source(shots, live=True)


def open_video(path: Path) -> Source:
    """The pictures of a video file. Raises ConfigError if it cannot be read."""
    capture = _opened(str(path), str(path))
    # The container's frame count is an estimate, so it is not the source's length.
    return Source(lambda: _shots(capture, live=False))


def _opened(what: int | str, name: str) -> Any:
    try:
        import cv2
    except ImportError:
        raise ConfigError(
            f"{name} needs OpenCV: pip install 'offboard[camera]' "
            "(or pip install opencv-python-headless)"
        ) from None
    capture = cv2.VideoCapture(what)
    if not capture.isOpened():
        raise ConfigError(f"{name} cannot be opened: is it there, and free, and may you read it?")
    return capture


def _shots(capture: Any, *, live: bool) -> Iterator[Shot]:
    index = 0
    try:
        while True:
            ok, bgr = capture.read()
            if not ok and live:
                raise OSError("the camera gives no more pictures")
            if not ok:
                return
            captured = time.monotonic() if live else None
            yield Shot(index, str(index), bgr[:, :, ::-1], captured)
            index += 1
    finally:
        capture.release()
