"""Log lines in the journal and elsewhere."""

import io
import logging
import os
import sys
from pathlib import Path

import pytest

from common.journal import JournalFormatter, configure, is_journal


def record(level: int, text: str, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("offboard.test", level, "", 0, text, (), info)


@pytest.mark.parametrize(
    ("level", "severity"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 3),
    ],
)
def test_a_line_begins_with_its_severity(level: int, severity: int) -> None:
    assert JournalFormatter().format(record(level, "x")) == f"<{severity}>offboard.test: x"


def test_every_line_of_a_traceback_has_it() -> None:
    lines = JournalFormatter().format(record(logging.ERROR, "x", ValueError("y"))).splitlines()
    assert lines == ["<3>offboard.test: x", "<3>ValueError: y"]


def test_only_the_stream_that_the_journal_gave_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, (tmp_path / "other").open("w") as other:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(stream, environ)
        assert not is_journal(other, environ)
        assert not is_journal(stream, {})
        assert not is_journal(io.StringIO(), environ)


@pytest.mark.parametrize("journal", [True, False])
def test_configure_writes_as_the_reader_likes_it(
    journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        status = os.fstat(stream.fileno())
        name = f"{status.st_dev}:{status.st_ino}" if journal else ""
        configure("info", "level=%(levelname)s %(message)s", {"JOURNAL_STREAM": name})
        log = logging.getLogger("offboard.test")
        log.debug("unseen")
        log.info("seen")
    expected = "<6>offboard.test: seen\n" if journal else "level=INFO seen\n"
    assert (tmp_path / "log").read_text() == expected
