"""Sources: what is read, in which order, and how any picture becomes pixels of the right size."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from common.errors import ConfigError
from common.profile import Input
from device import picture
from device import source as sources
from device.content import pictures
from device.feed import Feed
from device.source import Shot, Source, open_source, split_stream
from device.splitter import Splitter
from device.strategy import Pixels


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth colourful picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def coded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# Pictures.


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (100, 100), (300, 100), (100, 300), (700, 900)]
)
def test_fit_is_the_central_cut_resampled_as_pillow_does(height: int, width: int) -> None:
    image = photo(480, 640)
    scale = min(480 / height, 640 / width)
    rows, columns = height * scale, width * scale
    box = ((640 - columns) / 2, (480 - rows) / 2, (640 + columns) / 2, (480 + rows) / 2)
    expected = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    assert apart(picture.fit(np.asarray(image), height, width), np.asarray(expected)) <= 1


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = np.asarray(photo(224, 224))
    assert np.array_equal(picture.fit(pixels, 224, 224), pixels)
    assert np.array_equal(picture.load(coded(photo(224, 224), "PNG"), 224, 224), pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_and_grey_too(kind: str, mode: str) -> None:
    image = photo(128, 128).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = picture.load(coded(image, kind, **options), 128, 128)
    assert pixels.shape == (128, 128, 3)
    assert pixels.dtype == np.uint8
    loss = apart(pixels, np.asarray(image.convert("RGB")))
    assert loss <= {"GIF": 160, "JPEG": 24}.get(kind, 0)
    if mode == "L":
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_and_cmyk_become_rgb() -> None:
    image = photo(64, 64)
    assert picture.load(coded(image.convert("RGBA"), "PNG"), 64, 64).shape == (64, 64, 3)
    loss = apart(picture.load(coded(image.convert("CMYK"), "JPEG"), 64, 64), np.asarray(image))
    assert loss < 64


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", ["JPEG", "PNG"])
def test_pictures_are_turned_upright(turn: int, order: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = coded(photo(96, 160), order, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    height, width, _ = upright.shape
    assert apart(picture.load(data, height, width), upright) <= 12


@pytest.mark.parametrize("head", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0"])
def test_orientation_of_anything_is_some_orientation(head: bytes) -> None:
    assert picture.orientation(head) == 1


@given(st.binary(max_size=64))
def test_orientation_survives_any_exif(tail: bytes) -> None:
    head = b"\xff\xd8\xff\xe1\x00\x40Exif\0\0" + tail
    assert 1 <= picture.orientation(head) <= 8


def test_a_large_jpeg_is_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    shapes: list[tuple[int, ...]] = []
    decode = simplejpeg.decode_jpeg

    def watched(*arguments: object, **options: object) -> Pixels:
        pixels: Pixels = decode(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    image = photo(1200, 1600)
    pixels = picture.load(coded(image, "JPEG", quality=95), 224, 224)
    assert shapes == [(300, 400, 3)]
    assert apart(pixels, picture.fit(np.asarray(image), 224, 224)) <= 24


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\xff\xd8\xff\xe0",
        coded(photo(64, 64), "PNG")[:200],
        coded(photo(64, 64), "JPEG")[:-100],
    ],
)
def test_what_is_no_picture_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty|cannot be decoded|no picture"):
        picture.load(data, 64, 64)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = coded(photo(64, 64), "JPEG")
    assert np.array_equal(
        picture.load(data + b"camera maker's notes", 64, 64), picture.load(data, 64, 64)
    )


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "LARGEST", 1000)
    with pytest.raises(ValueError, match="too many"):
        picture.load(coded(photo(64, 64), "JPEG"), 32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ValueError, match="too large"):
        picture.load(coded(photo(64, 64), "PNG"), 32, 32)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_arrays_of_another_kind_are_refused(pixels: Pixels) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        picture.fit(pixels, 4, 4)


# Streams of pictures.

STREAM = [
    coded(photo(48, 64, 1), "JPEG", exif=b"Exif\0\0" + coded(photo(8, 8), "JPEG")),
    coded(photo(48, 64, 2), "PNG"),
    coded(photo(48, 64, 3), "JPEG", progressive=True),
    coded(photo(48, 64, 4), "JPEG", restart_marker_rows=1),
    coded(photo(16, 16, 5), "JPEG", quality=100, subsampling=0),
]


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1), st.binary(max_size=20))
def test_any_chunking_gives_the_same_pictures(sizes: list[int], noise: bytes) -> None:
    noise = noise.replace(b"\xff", b"").replace(b"\x89", b"")
    stream = b"".join(noise + each for each in STREAM)
    splitter, found, at = Splitter(), [], 0
    for size in itertools.cycle(sizes):
        found += splitter.feed(stream[at : at + size])
        at += size
        if at >= len(stream):
            break
    assert found == STREAM
    assert splitter.rest() == b""


@given(st.lists(st.binary(max_size=200)))
def test_any_bytes_are_survived(chunks: list[bytes]) -> None:
    splitter = Splitter(limit=100)
    for chunk in chunks:
        splitter.feed(b"\xff\xd8\xff" + chunk)
    assert len(splitter.rest()) <= 100 + 203


def test_a_broken_picture_does_not_take_the_next_one_along() -> None:
    splitter = Splitter()
    broken = STREAM[0][:4] + b"\x00\x02" + b"nonsense"
    assert splitter.feed(broken + STREAM[1]) == [STREAM[1]]


def test_an_endless_picture_is_thrown_away() -> None:
    splitter = Splitter(limit=1000)
    splitter.feed(STREAM[0][:600])
    splitter.feed(bytes(5000))
    assert splitter.rest() == b""
    assert splitter.feed(STREAM[1]) == [STREAM[1]]


def test_a_stream_cut_short_ends_in_an_unreadable_shot() -> None:
    shots = list(split_stream(io.BytesIO(STREAM[0] + STREAM[1][:-200])))
    assert [shot.name for shot in shots] == ["0", "1"]
    assert shots[0].frame(pictures(Input(64, 64, 3, 8))).pixels.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="no picture"):
        shots[1].frame(pictures(Input(64, 64, 3, 8)))


def test_standard_input_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("-")
    assert (source.length, source.live) == (None, False)
    ends = os.pipe()
    writer = threading.Thread(target=_fill, args=(ends[1], b"".join(STREAM)))
    writer.start()
    monkeypatch.setattr(sources, "STANDARD_INPUT", ends[0])
    assert [shot.data for shot in source.shots()] == STREAM
    writer.join(5)
    os.close(ends[0])


def _fill(pipe: int, data: bytes) -> None:
    with os.fdopen(pipe, "wb") as file:
        file.write(data)


# Files.


def test_a_folder_is_read_recursively_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.JPEG", "a.png", "notes.txt", "c/d/e.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8).save(tmp_path / name, "PNG")
    source = open_source(str(tmp_path))
    shots = list(source.shots())
    assert [shot.name for shot in shots] == ["a.png", "b/10.JPEG", "b/2.jpg", "c/d/e.PNG"]
    assert [shot.index for shot in shots] == [0, 1, 2, 3]
    assert (source.length, source.live) == (4, False)
    before = time.monotonic()
    assert shots[0].frame(pictures(Input(8, 8, 3, 8))).captured >= before


def test_a_file_and_a_pattern(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.jpg"):
        photo(8, 8).save(tmp_path / name)
    assert [s.name for s in open_source(str(tmp_path / "3.jpg")).shots()] == ["3.jpg"]
    found = list(open_source(str(tmp_path / "*.png")).shots())
    assert [Path(s.name).name for s in found] == ["1.png", "2.png"]


def test_a_stored_stream(tmp_path: Path) -> None:
    (tmp_path / "clip.mjpeg").write_bytes(b"".join(STREAM))
    assert [s.data for s in open_source(str(tmp_path / "clip.mjpeg")).shots()] == STREAM


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{}/none", "nothing that exists"),
        ("{}/*.png", "nothing that exists"),
        ("{}", "no picture under"),
        ("camera:", "number is missing"),
        ("camera:one", "number is missing"),
    ],
)
def test_a_source_that_is_none_says_so(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        open_source(text.format(tmp_path))


class Capture:
    """OpenCV's VideoCapture with three pictures."""

    released = 0

    def __init__(self, what: object) -> None:
        self.left = 3
        self.opened = what != 9

    def isOpened(self) -> bool:
        return self.opened

    def read(self) -> tuple[bool, Pixels | None]:
        self.left -= 1
        return (self.left >= 0, np.full((8, 8, 3), [255, 0, 0], np.uint8))

    def release(self) -> None:
        Capture.released += 1


def test_cameras_are_live_and_videos_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", type("cv2", (), {"VideoCapture": Capture}))
    (tmp_path / "clip.mp4").touch()
    for text, live in (("camera:0", True), (str(tmp_path / "clip.mp4"), False)):
        source = open_source(text)
        stream = source.shots()
        shots = [next(stream) for _ in range(3)]
        # A video ends; a camera that does has failed.
        with pytest.raises(OSError if live else StopIteration):
            next(stream)
        assert source.live is live
        assert [shot.captured is not None for shot in shots] == [live] * 3
        assert shots[0].frame(pictures(Input(8, 8, 3, 8))).pixels[0, 0].tolist() == [
            0,
            0,
            255,
        ]
    assert Capture.released == 2
    with pytest.raises(ConfigError, match=r"camera 9 .* cannot be opened"):
        open_source("camera:9")


def test_without_opencv_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'offboard\[camera\]'"):
        open_source("camera:0")


# The feed.


def shots_of(count: int, taken: list[int] | None = None) -> Callable[[], Iterator[Shot]]:
    def shots() -> Iterator[Shot]:
        for index in range(count):
            if taken is not None:
                taken.append(index)
            yield Shot(index, str(index), b"", time.monotonic())

    return shots


def test_stored_shots_are_never_dropped_nor_read_far_ahead() -> None:
    taken: list[int] = []

    async def main() -> list[int]:
        feed = Feed(Source(shots_of(20, taken)))
        got: list[int] = []
        async for shot in feed:
            await asyncio.sleep(0.002)
            assert len(taken) - len(got) <= 5
            got.append(shot.index)
        return got

    assert asyncio.run(main()) == list(range(20))


def test_of_live_shots_the_newest_wins() -> None:
    go, produced = threading.Event(), threading.Event()

    def shots() -> Iterator[Shot]:
        yield Shot(0, "0", b"", 0.0)
        assert go.wait(5)
        for index in range(1, 50):
            yield Shot(index, str(index), b"", 0.0)
        produced.set()

    async def main() -> tuple[list[int], int]:
        feed = Feed(Source(shots, live=True))
        got = [(await anext(feed)).index]
        go.set()
        await asyncio.to_thread(produced.wait, 5)
        await asyncio.sleep(0.01)
        got += [shot.index async for shot in feed]
        return got, feed.dropped

    assert asyncio.run(main()) == ([0, 49], 48)


def test_a_source_that_fails_ends_the_feed_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def shots() -> Iterator[Shot]:
        yield Shot(0, "0", b"")
        raise OSError("the card was pulled")

    async def main() -> tuple[int, str | None]:
        feed = Feed(Source(shots))
        return len([shot async for shot in feed]), feed.error

    assert asyncio.run(main()) == (1, "the source failed: the card was pulled")


def test_a_closed_feed_lets_its_thread_go() -> None:
    async def main() -> None:
        feed = Feed(Source(shots_of(1000)))
        await anext(feed)
        feed.close()

    before = threading.active_count()
    asyncio.run(main())
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.005)
    assert threading.active_count() <= before
