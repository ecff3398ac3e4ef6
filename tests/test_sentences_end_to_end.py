"""Two real processes and the profile `sst2`: streams with anything in them, pools that move."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import pair

pytestmark = pytest.mark.usefixtures("own_cache")
LINES: tuple[tuple[bytes, str | None], ...] = (
    (b"a wonderful film", None),
    (b"", "unreadable: an empty line"),
    (b" \t ", "unreadable: an empty line"),
    (b"word " * 20_000, "unreadable: a line of more than 16384 bytes"),
    (b"caf\xe9 au lait", "unreadable: no UTF-8: byte 4 is 0xe9"),
    ("\u9019\u90e8\u96fb\u5f71".encode(), "refused: bad: none of its words is known"),
    (b"a dull mess", None),
)
"""Lines, and how the error that each one gets begins."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pair.server("sst2", "--threads", "1") as found:
        yield found


def ask(address: str, source: str, *flags: str, given: bytes = b"") -> tuple[int, list[pair.Row]]:
    """The exit status and the answers of a device."""
    command = [sys.executable, "-m", "device", "--server", address, "--profile", "sst2"]
    done = subprocess.run(
        [*command, "--source", source, "--json", *flags], input=given, capture_output=True,
        timeout=60,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("way", ["a pipe", "a file"])
def test_what_is_wrong_with_a_line_is_said_of_it_and_the_stream_goes_on(
    way: str, address: str, tmp_path: Path
) -> None:
    text = b"\n".join(line for line, _ in LINES)
    path = tmp_path / "lines.txt"
    path.write_bytes(text)
    status, answers = ask(address, "-", given=text) if way == "a pipe" else ask(address, str(path))
    assert status == 1
    assert len(answers) == len(LINES)
    for answer, (_, error) in zip(answers, LINES, strict=True):
        if error is None:
            assert answer["error"] is None
        else:
            assert answer["error"].startswith(error)
    assert [answers[0]["label"], answers[-1]["label"]] == ["positive", "negative"]


def test_pools_that_moved_are_found_by_the_next_run(
    address: str, own_cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a fine film\n" * 30)
    flags = ("--strategy", "dimec", "--set", "route=nearest", "--set", "pools=adaptive")
    counts = []
    for _ in range(2):
        status, answers = ask(address, str(path), *flags)
        assert (status, len(answers)) == (0, 30)
        (left,) = own_cache.rglob("dimec-pools.npz")
        with np.load(left) as held:
            counts.append(int(held["counts"].sum()))
    assert counts[1] == counts[0] + 30
