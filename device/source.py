"""Where pictures, sounds and sentences come from: folder, file, pattern, camera, standard input.

A source yields `Shot`s: a name and bytes (or a path, or pixels) not decoded yet, so that a live
source can drop a shot before anything was spent on it. Reading blocks: `feed` does it in a thread.
"""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from common.errors import ConfigError
from device import clip
from device.content import Data, Reader
from device.splitter import Splitter, are_pictures
from device.strategy import Frame
from device.text import Lines

PICTURES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
SOUNDS = frozenset((".wav",))
TABLES = frozenset((".tsv",))
TEXTS = TABLES | {".txt"}
STREAMS = frozenset((".mjpeg", ".mjpg"))
VIDEOS = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"))
CLIPS = "clips:"
STANDARD_INPUT = 0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture or sound not decoded yet.

    `captured`: seconds on `time.monotonic` when a camera took it; None for stored pictures,
    whose deadline runs from the moment they are in memory.
    """

    index: int
    name: str
    data: Data
    captured: float | None = None

    def frame(self, read: Reader) -> Frame:
        """Decoded by `read`. Raises ValueError or OSError with a text for people."""
        content = read(self.data)
        captured = time.monotonic() if self.captured is None else self.captured
        return Frame(self.index, self.name, content, captured)


@dataclass(frozen=True, slots=True)
class Source:
    """A stream of shots. `length`: how many, None if that cannot be known.

    `live`: only the newest shot is worth anything; otherwise none may be dropped.
    """

    shots: Callable[[], Iterator[Shot]]
    length: int | None = None
    live: bool = False


def open_source(text: str) -> Source:
    """The source that `text` names. Raises ConfigError saying what was expected."""
    if text == "-":
        return Source(_standard_input)
    if text.startswith("camera:"):
        from device import camera

        return camera.open_camera(text)
    if text.startswith(CLIPS):
        return _clips(Path(text.removeprefix(CLIPS)))
    path = Path(text)
    if path.is_dir():
        known = PICTURES | SOUNDS
        found = [p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file()]
        if not found:
            raise ConfigError(f"there is no picture under {text} ({_suffixes(PICTURES)}), and no "
                              f"sound ({_suffixes(SOUNDS)})")  # fmt: skip
        return of_files(sorted(found), path)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in STREAMS:
            return Source(lambda: _stored_stream(path))
        if suffix in TEXTS:
            return Source(lambda: _stored_lines(path, suffix in TABLES))
        if suffix in VIDEOS:
            from device import camera

            return camera.open_video(path)
        return of_files([path], path.parent)
    matches = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if files:
        return of_files(files, None)
    raise ConfigError(
        f"--source {text!r} is nothing that exists: give a folder, a file, a quoted pattern, "
        "clips:DIR, camera:N, or - for pictures or lines of text on standard input"
    )


def _clips(root: Path) -> Source:
    found = clip.find(root)
    if not found:
        raise ConfigError(
            f"there is no clip under {root}: no folder of pictures ({_suffixes(clip.PICTURES)}), "
            f"and no file of frames ({_suffixes(clip.FILES)})"
        )
    base = root if root.is_dir() and found != [root] else root.parent

    def shots() -> Iterator[Shot]:
        for index, path in enumerate(found):
            yield Shot(index, str(path.relative_to(base)), path)

    return Source(shots, len(found))


def of_files(files: Sequence[Path], root: Path | None) -> Source:
    """Stored pictures or sounds in the given order, named relative to `root` if there is one.

    Raises ConfigError if there are both, since no profile answers both.
    """
    heard = next((path for path in files if path.suffix.lower() in SOUNDS), None)
    seen = next((path for path in files if path.suffix.lower() in PICTURES), None)
    if heard and seen:
        raise ConfigError(f"{heard} is a sound and {seen} a picture: give only one kind at a time")

    def shots() -> Iterator[Shot]:
        for index, path in enumerate(files):
            name = path if root is None else path.relative_to(root)
            yield Shot(index, str(name), path)

    return Source(shots, len(files))


def split_stream(
    stream: BinaryIO | FileIO, splitter: Splitter | Lines | None = None
) -> Iterator[Shot]:
    """The pictures, or lines, one after another in `stream`, named by their number.

    `splitter` None: its first bytes tell which they are.
    """
    index = 0
    while data := stream.read(_CHUNK):
        if splitter is None:
            splitter = Splitter() if are_pictures(data) else Lines()
        for each in splitter.feed(data):
            yield Shot(index, str(index), each)
            index += 1
    if splitter is not None and (rest := splitter.rest()):
        yield Shot(index, str(index), rest)


def _standard_input() -> Iterator[Shot]:
    # Unbuffered: a thread that waits in sys.stdin holds a lock without which Python cannot exit.
    with open(STANDARD_INPUT, "rb", buffering=0, closefd=False) as stream:
        if stream.isatty():
            print("a sentence a line; Ctrl-D ends", file=sys.stderr, flush=True)
        yield from split_stream(stream)


def _stored_stream(path: Path) -> Iterator[Shot]:
    with path.open("rb", buffering=0) as stream:
        yield from split_stream(stream, Splitter())


def _stored_lines(path: Path, table: bool) -> Iterator[Shot]:
    with path.open("rb", buffering=0) as stream:
        yield from split_stream(stream, Lines(table=table))


def _suffixes(of: frozenset[str]) -> str:
    return " ".join(sorted(of))
