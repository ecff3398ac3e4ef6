"""Received bytes to messages, for any chunking. Owns the receive buffers. No I/O.

    n = sock.recv_into(parser.get_buffer())
    message = parser.next(n)
    while message is not None: ...; message = parser.next()

Where data land: small packets arrive in one window, and their bodies are copied out of it. A
larger body that fits the window is handed out as a view, and the window is then left to whoever
holds that view: bytes handed out are not written again before the last view is gone, which the
window's reference count tells. A body that does not fit gets a buffer of its own and is received
straight into it. Buffers are uninitialised numpy memory, so malloc does the pooling.
"""

from __future__ import annotations

from struct import Struct
from sys import getrefcount
from typing import Final

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.messages import Message
from common.wire import (
    BEFORE_AUTH,
    MAGIC,
    PREFIX,
    SPECS,
    VERSIONS,
    Head,
    Limits,
    decode_floats,
    decode_head,
)

Memory = npt.NDArray[np.uint8]
Prefix = tuple[bytes, int, int, int, int]

SMALL: Final = 4096
"""Bodies up to this many bytes are copied, so that they do not hold a window."""
WINDOW: Final = (8 << 10, 1 << 20)
"""Smallest and largest window in bytes."""
CACHED_HEADS: Final = 32
"""Decoded heads kept for each kind of message."""
CACHED_HEAD: Final = 1024
"""Longest head in bytes that is worth keeping decoded."""

ROOM: Final = 64 << 10
"""Most bytes a window has beyond the packet expected."""
SLACK: Final = 64
"""Bytes beyond that: a read that fills its buffer is followed by another one, in vain."""
UNHELD: Final = 3
"""The reference count of a window that nobody looks into: the parser, its view, the call."""

_AT: Final = PREFIX.size
"""Where the head begins."""
_PREFIX: Final = Struct("!4sIIII")
"""PREFIX with magic, version and kind in one."""
_SPECS: Final = {
    version: {MAGIC + bytes((version, kind)): spec for kind, spec in SPECS.items()}
    for version in VERSIONS
}
"""By version: how a packet begins, and what it then is."""
_ANY: Final = {first: spec for specs in _SPECS.values() for first, spec in specs.items()}


class Parser:
    """The receiving half of one connection. `limits` may be changed between two messages."""

    __slots__ = (
        "_capacity", "_end", "_expect", "_filled", "_heads", "_large", "_own", "_own_head",
        "_packet", "_pinned", "_specs", "_start", "_version", "_view", "_window", "left", "limits",
        "size",
    )  # fmt: skip

    def __init__(self, limits: Limits = BEFORE_AUTH) -> None:
        self.limits = limits
        self.size = 0
        """Bytes of the whole packet that `next` returned last."""
        self.left = 0
        """Bytes behind it that wait to be parsed."""
        self._version: int | None = None
        self._specs = _ANY
        self._heads: dict[int, dict[bytes, Head]] = {kind: {} for kind in SPECS}
        self._packet: Prefix | None = None
        self._own: memoryview | None = None
        self._own_head: tuple[Head, tuple[float, ...]] | None = None
        self._filled = 0
        self._expect = 0
        self._large = False
        self._window = _memory(WINDOW[0])
        self._view = self._window.data
        self._capacity = WINDOW[0]
        self._start = self._end = 0
        self._pinned = False

    @property
    def version(self) -> int | None:
        """The one version allowed from now on; None: any spoken here."""
        return self._version

    @version.setter
    def version(self, version: int | None) -> None:
        self._version = version
        self._specs = _ANY if version is None else _SPECS.get(version, {})

    @property
    def partial(self) -> bool:
        """Whether a packet has begun and not ended: the end of the stream is then a cut."""
        return self._own is not None or self._end > self._start

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes are to be received; never empty. `sizehint` has no effect."""
        if self._own is not None:
            return self._own[self._filled :]
        end = self._end
        held = end - self._start
        if held:
            wanted = held + 1
            packet = self._packet
            if packet is not None:
                wanted = _AT + packet[1]
                if wanted + packet[2] <= WINDOW[1]:
                    wanted += packet[2]
        elif not self._pinned or getrefcount(self._window) == UNHELD:
            self._start = self._end = 0
            self._pinned = False
            if self._capacity > WINDOW[0] + SLACK and self._capacity > 4 * self._expect:
                self._renew(0)
            return self._view[:SMALL] if self._large else self._view
        else:
            wanted = min(self._expect, WINDOW[1]) + SLACK
        if self._start + wanted > self._capacity:
            self._move(wanted)
            end = self._end
        if self._large and not held:
            return self._view[end : end + SMALL]
        return self._view[end:]

    def next(self, received: int = 0) -> Message | None:
        """The next whole message, or None, after `received` bytes came into the last buffer.

        Raises ProtocolError; the parser is then of no use.
        """
        if self._own is not None:
            self._filled += received
            return self._next_own() if self._filled == len(self._own) else None
        start, filled = self._start, self._end
        if received:
            self._end = filled = filled + received
            if received > self._expect:
                self._expect = received
        packet = self._packet
        if packet is None:
            if filled - start < _AT:
                return None
            packet = _PREFIX.unpack_from(self._view, start)
            self._check(packet)
        first, head_size, body_size, id, ms_left = packet
        body_at = start + _AT + head_size
        end = body_at + body_size
        if end > filled:
            self._packet = packet
            if end - start > WINDOW[1] and body_at <= filled:
                self._open_own(body_at, body_size)
            return None
        head, floats = self._head(first, start + _AT, body_at, body_size)
        body: memoryview | bytes
        if body_size > SMALL:
            # A memoryview of its own, so that whoever holds it shows in the window's count.
            body = self._window.data[body_at:end]
            self._pinned = True
        elif body_size:
            body = memoryview(bytearray(self._view[body_at:end]))
        else:
            body = b""
        self._packet = None
        self._large = False
        self._expect = self.size = end - start
        self._start = end
        self.left = filled - end
        return head.message(floats, id, ms_left, body)

    def _check(self, packet: Prefix) -> None:
        """Check a prefix before anything is allocated on its word."""
        first, head, body, _, _ = packet
        spec = self._specs.get(first)
        limits = self.limits
        if spec is None:
            if first[:2] != MAGIC:
                raise ProtocolError("not an Offboard packet")
            if first[2] not in _SPECS or self._version not in (None, first[2]):
                raise ProtocolError(f"version {first[2]} is not spoken on this connection")
            raise ProtocolError(f"no message has kind {first[3]}")
        if head > limits.head:
            raise ProtocolError(f"head of {head} bytes, {limits.head} allowed")
        if head < spec.tail.size:
            raise ProtocolError(f"head of {head} bytes is too short")
        if body > limits.body:
            raise ProtocolError(f"body of {body} bytes, {limits.body} allowed")

    def _head(self, first: bytes, at: int, end: int, body: int) -> tuple[Head, tuple[float, ...]]:
        """The head at `at`, out of the cache where it repeats, and its floats."""
        view = self._view
        spec = _ANY[first]
        floats: tuple[float, ...] = ()
        if spec.floats:
            end -= spec.tail.size
            floats = decode_floats(spec, view, end)
        raw = view[at:end].tobytes()
        heads = self._heads[spec.kind]
        head = heads.get(raw)
        if head is None:
            head = decode_head(spec, raw, self.limits)
            if not head.fresh and len(raw) <= CACHED_HEAD:
                if len(heads) >= CACHED_HEADS:
                    heads.clear()
                heads[raw] = head
        if head.size != body:
            raise ProtocolError(f"body of {body} bytes, but its tensors come to {head.size}")
        return head, floats

    def _open_own(self, body_at: int, size: int) -> None:
        """Give the body its own buffer; what has come of it is copied there."""
        assert self._packet is not None
        self._own_head = self._head(self._packet[0], self._start + _AT, body_at, size)
        self._own = _memory(size).data
        self._filled = self._end - body_at
        self._own[: self._filled] = self._view[body_at : self._end]
        self._start = self._end

    def _next_own(self) -> Message:
        assert self._packet is not None
        assert self._own is not None
        assert self._own_head is not None
        head, floats = self._own_head
        _, head_size, body_size, id, ms_left = self._packet
        message = head.message(floats, id, ms_left, self._own)
        self.size = _AT + head_size + body_size
        self._packet = self._own = self._own_head = None
        self._expect = self.left = 0
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
        # What came last and room for more, so that a steady stream fits, a burst makes the window
        # grow, and an idle connection holds little.
        roomy = self._expect + min(self._expect, ROOM)
        size = max(WINDOW[0], min(roomy, WINDOW[1]), wanted) + SLACK
        self._window = _memory(size)
        self._view = self._window.data
        self._capacity = size
        self._start = self._end = 0
        self._pinned = False


def _memory(size: int) -> Memory:
    """Uninitialised memory: zeroing it would cost more than the parsing."""
    return np.empty(size, np.uint8)
