"""Chunks to a file, checked. Pure."""

from __future__ import annotations

import hashlib

from common.errors import ProtocolError
from common.messages import Chunk


class Download:
    """Gathers the chunks of one file; survives a lost connection by its `offset`.

    limit: the longest file taken, in bytes.
    """

    __slots__ = ("_data", "_digest", "_limit", "_total", "path")

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._data = bytearray()
        self._digest: str | None = None
        self._total = 0

    @property
    def offset(self) -> int:
        """Bytes here already: where to go on."""
        return len(self._data)

    def add(self, chunk: Chunk) -> bool:
        """Append `chunk`; True when the file is whole. Raises ProtocolError."""
        tensor = chunk.tensors.get("data")
        if tensor is None or tensor.codec != "raw" or tensor.dtype != "uint8":
            raise ProtocolError("a chunk without raw uint8 data")
        if self._digest is not None and (chunk.digest, chunk.total) != (self._digest, self._total):
            raise ProtocolError(f"{self.path!r} changed while it was fetched")
        if chunk.total > self._limit:
            raise ProtocolError(f"{self.path!r} has {chunk.total} bytes, {self._limit} allowed")
        if chunk.offset != len(self._data) or len(self._data) + len(tensor.data) > chunk.total:
            raise ProtocolError(f"a chunk of {self.path!r} is out of place")
        if not len(tensor.data) and len(self._data) < chunk.total:
            raise ProtocolError(f"an empty chunk of {self.path!r}")
        self._digest, self._total = chunk.digest, chunk.total
        self._data += tensor.data
        return len(self._data) == chunk.total

    def data(self) -> bytes:
        """The whole file. Raises ProtocolError if its digest is another."""
        data = bytes(self._data)
        if hashlib.sha256(data).hexdigest() != self._digest:
            raise ProtocolError(f"{self.path!r} does not have the digest announced")
        return data
