"""Sentences: one a line, in UTF-8. What is wrong with a line is told of that line; no I/O."""

from __future__ import annotations

from pathlib import Path

LONGEST = 16_384
"""Bytes of the longest line that is read: some three thousand words."""
HEADER = b"sentence\t"
"""How the first line of a table of sentences begins; its first column is what is asked about."""


def load(data: bytes | Path) -> str:
    """The sentence in `data`. Raises ValueError or OSError with a text for people."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f"a line of more than {LONGEST} bytes")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8: byte {error.start + 1} is {data[error.start]:#04x}") from None
    if not text:
        raise ValueError("an empty line")
    return text


class Lines:
    """Cuts a byte stream into lines, however long; of a long one no more than LONGEST + 1 bytes.

    `table`: whether the first column of each line is taken, and the first line, the header, not.
    """

    def __init__(self, *, table: bool = False) -> None:
        self._table = table
        self._first = True
        self._line = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, in order, without their ends."""
        *whole, rest = data.split(b"\n")
        done = []
        for piece in whole:
            self._add(piece)
            done += self._end()
        self._add(rest)
        return done

    def rest(self) -> bytes:
        """A last line without an end, or nothing."""
        return b"".join(self._end())

    def _add(self, piece: bytes) -> None:
        self._line += piece[: LONGEST + 1 - len(self._line)]

    def _end(self) -> list[bytes]:
        line = bytes(self._line).removesuffix(b"\r")
        self._line.clear()
        header, self._first = self._table and self._first and line.startswith(HEADER), False
        if header:
            return []
        return [line.split(b"\t")[0] if self._table else line]
