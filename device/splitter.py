"""A stream of pictures written one after another, cut into pictures. No I/O.

That is what `ffmpeg -f mjpeg -`, `libcamera-vid --codec mjpeg -o -` and `cat *.jpg *.png` write.
JPEG is walked marker by marker and PNG chunk by chunk, so a thumbnail inside a picture is not
taken for its end. Bytes between pictures are skipped.
"""

from __future__ import annotations

import re

LIMIT = 64 << 20
"""Bytes of the largest picture kept; a longer one is thrown away."""

_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""In coded data: a byte FF that is neither stuffed nor a restart, so a marker."""


def are_pictures(start: bytes) -> bool:
    """Whether a stream that begins like this is of pictures, from the middle of one on, too.

    Otherwise it is of text, which has no byte zero; coded pictures have many.
    """
    return b"\0" in start or _START.search(start) is not None


class Splitter:
    """Cuts a byte stream into pictures.

    `at` walks the picture that starts the buffer: everything before it has been looked at.
    `coded`: whether `at` stands in the coded data of a JPEG scan.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0
        self._coded = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pictures that `data` completes, in order."""
        self._buffer += data
        done: list[bytes] = []
        while (size := self._advance()) is not None:
            done.append(bytes(self._buffer[:size]))
            self._drop(size)
        return done

    def rest(self) -> bytes:
        """What is left at the end of the stream: a picture cut short, or nothing."""
        return bytes(self._buffer) if self._at else b""

    def _advance(self) -> int | None:
        """Walk on; the size of the first picture in the buffer once it is whole."""
        if not self._at and not self._find_start():
            return None
        size = self._png() if self._buffer[0] == 0x89 else self._jpeg()
        if size is None and len(self._buffer) > self._limit:
            self._drop(len(self._buffer))
        return size

    def _find_start(self) -> bool:
        found = _START.search(self._buffer)
        if found is None:
            # The last seven bytes may begin a start.
            del self._buffer[: max(0, len(self._buffer) - 7)]
            return False
        del self._buffer[: found.start()]
        self._at = found.end() - found.start()
        if self._buffer[0] == 0xFF:
            self._at = 2
        return True

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._at = 0
        self._coded = False

    def _png(self) -> int | None:
        buffer = self._buffer
        while self._at + 8 <= len(buffer):
            end = self._at + 12 + int.from_bytes(buffer[self._at : self._at + 4], "big")
            if len(buffer) < end:
                return None
            last = buffer[self._at + 4 : self._at + 8] == b"IEND"
            self._at = end
            if last:
                return end
        return None

    def _jpeg(self) -> int | None:
        buffer = self._buffer
        while True:
            if self._coded:
                found = _MARKER.search(buffer, self._at)
                if found is None:
                    self._at = max(self._at, len(buffer) - 1)
                    return None
                self._at = found.start()
                self._coded = False
            if self._at + 2 > len(buffer):
                return None
            first, marker = buffer[self._at], buffer[self._at + 1]
            if first != 0xFF or marker == 0xD8:
                # No marker where one must be: a broken picture. Look for the next start.
                self._drop(self._at)
                return self._advance()
            if marker == 0xFF:
                self._at += 1
                continue
            if marker == 0xD9:
                return self._at + 2
            if self._at + 4 > len(buffer):
                return None
            end = self._at + 2 + int.from_bytes(buffer[self._at + 2 : self._at + 4], "big")
            if len(buffer) < end:
                return None
            self._at = end
            self._coded = marker == 0xDA
