"""Received bytes to messages, for any chunking. Owns the receive buffers. No I/O.

    view = parser.get_buffer(); n = sock.recv_into(view); parser.advance(n)
    while (message := parser.next()) is not None: ...

Where data land: small packets arrive in one window, and their bodies are copied out of it. A
larger body that fits the window is handed out as a view, and the window is then left to whoever
holds that view: bytes once handed out are never written again. A body that does not fit gets a
buffer of its own and is received straight into it. Buffers are uninitialised numpy memory, freed
when the last view goes, so malloc does the pooling.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from common.errors import ProtocolError
from common.messages import Message
from common.wire import BEFORE_AUTH, MAGIC, PREFIX, SPECS, VERSIONS, Head, Limits, decode_head

SMALL: Final = 4096
"""Bodies up to this many bytes are copied, so that they do not hold a window."""
WINDOW: Final = (8 << 10, 256 << 10)
"""Smallest and largest window in bytes."""
CACHED_HEADS: Final = 64
CACHED_HEAD: Final = 1024
"""Longest head in bytes that is worth keeping decoded."""


class Parser:
    """The receiving half of one connection. `limits` may be changed between two messages."""

    __slots__ = (
        "_body", "_body_view", "_capacity", "_end", "_expect", "_filled", "_heads", "_large",
        "_packet", "_pinned", "_start", "_view", "limits", "size", "version",
    )  # fmt: skip

    def __init__(self, limits: Limits = BEFORE_AUTH) -> None:
        self.limits = limits
        self.size = 0
        """Bytes of the whole packet that `next` returned last."""
        self.version: int | None = None
        """The one version allowed from now on; None: any spoken here."""
        self._heads: dict[tuple[int, bytes], Head] = {}
        self._packet: tuple[int, int, int, int, int] | None = None
        self._body_view: memoryview | None = None
        self._body: Head | None = None
        self._filled = 0
        self._expect = 0
        self._large = False
        self._view = _memory(WINDOW[0])
        self._capacity = WINDOW[0]
        self._start = self._end = 0
        self._pinned = False

    @property
    def partial(self) -> bool:
        """Whether a packet has begun and not ended: the end of the stream is then a cut."""
        return self._body is not None or self._end > self._start

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be received; never empty."""
        if self._body_view is not None:
            return self._body_view[self._filled :]
        held = self._end - self._start
        if not held and not self._pinned:
            self._start = self._end = 0
        wanted = PREFIX.size
        if self._packet is not None:
            wanted += self._packet[1]
            if wanted + self._packet[2] <= WINDOW[1]:
                wanted += self._packet[2]
        elif not held and self._pinned:
            wanted = min(self._expect, WINDOW[1])
        if self._start + max(wanted, held + 1) > self._capacity:
            self._move(max(wanted, held + 1))
        if self._large and not held:
            return self._view[self._end : self._end + SMALL]
        return self._view[self._end :]

    def advance(self, n: int) -> None:
        """`n` bytes were received into the last buffer."""
        if self._body_view is not None:
            self._filled += n
        else:
            self._end += n
            if n > self._expect:
                self._expect = n

    def next(self) -> Message | None:
        """The next whole message, or None. Raises ProtocolError; the parser is then of no use."""
        if self._body is not None:
            return self._next_own()
        packet = self._packet
        held = self._end - self._start
        if packet is None:
            if held < PREFIX.size:
                return None
            packet = self._prefix()
        kind, head_size, body_size, id, ms_left = packet
        begin = self._start + PREFIX.size
        body_at = begin + head_size
        end = body_at + body_size
        if end > self._end:
            self._packet = packet
            if end - self._start > WINDOW[1] and body_at <= self._end:
                self._open_own(packet, body_at)
                if self._filled == body_size:
                    return self._next_own()
            return None
        view = self._view
        head = self._head(kind, view[begin:body_at], body_size)
        body: memoryview | None = None
        if body_size > SMALL:
            body = view[body_at:end]
            self._pinned = True
        elif body_size:
            body = memoryview(bytearray(view[body_at:end]))
        self._packet = None
        self._large = False
        self._expect = self.size = end - self._start
        self._start = end
        return head.message(id, ms_left, body)

    def _prefix(self) -> tuple[int, int, int, int, int]:
        magic, version, kind, head, body, id, ms_left = PREFIX.unpack_from(self._view, self._start)
        limits = self.limits
        if magic != MAGIC:
            raise ProtocolError("not an Offboard packet")
        if version != self.version and (self.version is not None or version not in VERSIONS):
            raise ProtocolError(f"version {version} is not spoken on this connection")
        if kind not in SPECS:
            raise ProtocolError(f"no message has kind {kind}")
        if head > limits.head:
            raise ProtocolError(f"head of {head} bytes, {limits.head} allowed")
        if body > limits.body:
            raise ProtocolError(f"body of {body} bytes, {limits.body} allowed")
        return kind, head, body, id, ms_left

    def _head(self, kind: int, raw: memoryview, body: int) -> Head:
        """The decoded head, out of the cache where it repeats."""
        key = (kind, bytes(raw))
        head = self._heads.get(key)
        if head is None:
            head = decode_head(kind, key[1], self.limits)
            if len(key[1]) <= CACHED_HEAD and not head.fresh:
                if len(self._heads) >= CACHED_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        if head.size != body:
            raise ProtocolError(f"body of {body} bytes, but its tensors come to {head.size}")
        return head

    def _open_own(self, packet: tuple[int, int, int, int, int], body_at: int) -> None:
        """Give the body its own buffer; what has come of it is copied there."""
        kind, head_size, body_size, _, _ = packet
        self._body = self._head(kind, self._view[body_at - head_size : body_at], body_size)
        self._body_view = _memory(body_size)
        self._filled = self._end - body_at
        self._body_view[: self._filled] = self._view[body_at : self._end]
        self._start = self._end

    def _next_own(self) -> Message | None:
        assert self._packet is not None
        assert self._body is not None
        _, head_size, body_size, id, ms_left = self._packet
        if self._filled < body_size:
            return None
        message = self._body.message(id, ms_left, self._body_view)
        self.size = PREFIX.size + head_size + body_size
        self._packet = self._body = self._body_view = None
        self._expect = 0
        self._large = True
        return message

    def _move(self, wanted: int) -> None:
        """Bring what is held to the front of a window of at least `wanted` bytes."""
        held = self._view[self._start : self._end]
        if self._pinned or wanted > self._capacity:
            self._renew(wanted)
        n = len(held)
        self._view[:n] = held
        self._start, self._end = 0, n

    def _renew(self, wanted: int) -> None:
        # Twice what came last, so that a steady stream fits and an idle connection holds little.
        size = max(WINDOW[0], min(2 * self._expect, WINDOW[1]), wanted)
        self._view = _memory(size)
        self._capacity = size
        self._start = self._end = 0
        self._pinned = False


def _memory(size: int) -> memoryview:
    """Uninitialised memory: zeroing it would cost more than the parsing."""
    return np.empty(size, np.uint8).data
