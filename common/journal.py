"""Log lines fit for whoever reads them: a terminal, a file, or systemd's journal.

The journal has a clock and a level for every entry, so lines sent to it carry neither in words:
each begins with the level as sd-daemon(3) wants it, "<6>", every line of a traceback too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

_SEVERITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class JournalFormatter(logging.Formatter):
    """`<level>logger: message`, on every line."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record, as the journal reads it."""
        severity = next((s for level, s in _SEVERITY if record.levelno >= level), 7)
        return "\n".join(f"<{severity}>{line}" for line in super().format(record).splitlines())


def is_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` goes straight to the journal (JOURNAL_STREAM names its device and inode)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def configure(level: str, text: str, environ: Mapping[str, str] = os.environ) -> None:
    """Log to standard error from `level` on: as `text` says, or as the journal likes it."""
    handler = logging.StreamHandler()
    journal = is_journal(sys.stderr, environ)
    handler.setFormatter(JournalFormatter() if journal else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])
