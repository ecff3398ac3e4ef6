"""Lines of text: how a stream is cut, what is wrong with a line, and what is a line at all."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.profile import Input, Manifest
from device.content import reader
from device.source import open_source, split_stream
from device.splitter import Splitter
from device.text import LONGEST, Lines, load

READ = reader(Manifest("t", "classify-text", ("a", "b"), Input(1, 64, 1, 1), {}))


def cut(data: bytes, sizes: list[int], **options: bool) -> list[bytes]:
    """The lines of `data` fed in pieces of `sizes`."""
    lines, out = Lines(**options), []
    for size in sizes:
        out += lines.feed(data[:size])
        data = data[size:]
    out += lines.feed(data)
    rest = lines.rest()
    return [*out, rest] if rest else out


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"").rstrip(b"\r"))),
       st.lists(st.integers(1, 9)))  # fmt: skip
def test_lines_come_whole_however_they_arrive(lines: list[bytes], sizes: list[int]) -> None:
    assert cut(b"".join(line + b"\n" for line in lines), sizes) == lines
    assert cut(b"".join(line + b"\r\n" for line in lines), sizes) == lines


def test_a_last_line_needs_no_end() -> None:
    assert cut(b"one\n\ntwo", [2]) == [b"one", b"", b"two"]


def test_a_long_line_is_told_and_not_kept() -> None:
    lines = Lines()
    for _ in range(100):
        assert lines.feed(b"x" * 50_000) == []
    (long,) = lines.feed(b"\n")
    assert len(long) == LONGEST + 1
    with pytest.raises(ValueError, match=f"more than {LONGEST} bytes"):
        load(long)
    assert lines.feed(b"fine\n") == [b"fine"]


def test_a_table_gives_its_first_column() -> None:
    table = b"sentence\tlabel\na fine film\t1\nsentence\t0\n"
    assert cut(table, [3, 9], table=True) == [b"a fine film", b"sentence"]
    assert cut(table, [])[0] == b"sentence\tlabel"


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"", "an empty line"), (b" \t ", "an empty line"), (b"caf\xe9 au lait", "byte 4 is 0xe9")],
)
def test_what_is_no_sentence_says_why(line: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        READ(line)


def test_a_sentence_is_read(tmp_path: Path) -> None:
    assert READ("  naïve, però bello \r".encode()) == "naïve, però bello"
    (tmp_path / "one").write_text("just one\n")
    assert READ(tmp_path / "one") == "just one"


@pytest.mark.parametrize("suffix", [".txt", ".tsv"])
def test_a_file_of_lines_is_a_source(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lines{suffix}"
    path.write_text("sentence\tlabel\ngood\t1\n\nbad\t0")
    shots = list(open_source(str(path)).shots())
    assert [shot.index for shot in shots] == list(range(len(shots)))
    expected = [b"good", b"", b"bad"] if suffix == ".tsv" else [b"sentence\tlabel", b"good\t1",
                                                                b"", b"bad\t0"]  # fmt: skip
    assert [shot.data for shot in shots] == expected


def test_a_stream_is_of_text_unless_it_looks_like_pictures() -> None:
    def shots(data: bytes) -> list[object]:
        return [shot.data for shot in split_stream(io.BytesIO(data))]

    assert shots(b"\xffone\xfe\ntwo\n") == [b"\xffone\xfe", b"two"]
    assert shots(b"junk\0\xff\n") == []
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\0IEND\xaeB`\x82"
    assert shots(b"junk\n" + picture) == [picture]
    assert Splitter().feed(picture) == [picture]
