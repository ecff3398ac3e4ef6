"""The only file that touches a socket: the writing half of a channel, and all of a script's.

asyncio's transport owns the socket of a `connection.Channel` and reads from it; `Outlet` writes.
`BlockingSocket` is the whole of it for `blocking.BlockingClient`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from ssl import SSLContext, SSLWantReadError, SSLWantWriteError
from typing import Final

from common import tcpinfo
from common.wire import Buffer

JOIN: Final = 32 << 10
"""Packets up to this many bytes are joined and written at once; larger ones are gathered."""
UNSENT: Final = 256 << 10
"""Bytes the transport may hold before writing is paused."""
LONGEST: Final = 86_400.0
"""Seconds that one wait for a blocking socket may last."""


class Outlet:
    """The writing half of an open transport. Not to be used once the transport is closed."""

    __slots__ = ("_fd", "_socket", "_transport", "peer")

    def __init__(self, transport: asyncio.Transport) -> None:
        address = transport.get_extra_info("peername")
        self.peer = f"{address[0]}:{address[1]}" if address else "?"
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = transport.get_extra_info("ssl_object") is not None
        self._fd = -1 if tls else self._socket.fileno()
        transport.set_write_buffer_limits(high=UNSENT)

    def write(self, buffers: list[Buffer], size: int) -> None:
        """Write `buffers`, `size` bytes in all, the large ones without joining them."""
        transport = self._transport
        if size <= JOIN:
            transport.write(b"".join(buffers))
            return
        sent = 0
        if self._fd >= 0 and not transport.get_write_buffer_size() and not transport.is_closing():
            # Straight to the socket: the transport would copy. An error shows again in its write.
            try:  # not suppress(), which takes longer than all the rest here
                sent = os.writev(self._fd, buffers)
            except OSError:
                sent = 0
            if sent == size:
                return
        for buffer in buffers:
            n = len(buffer)
            if sent < n:
                transport.write(memoryview(buffer)[sent:] if sent else buffer)
            sent = max(0, sent - n)

    @property
    def tcp(self) -> tcpinfo.TcpInfo | None:
        """What the kernel knows of this connection; None where it does not tell."""
        if tcpinfo.OPTION is not None:
            with contextlib.suppress(OSError):
                return tcpinfo.parse(
                    self._socket.getsockopt(socket.IPPROTO_TCP, tcpinfo.OPTION, tcpinfo.SIZE)
                )
        return None


class BlockingSocket:
    """A TCP connection for `blocking.BlockingClient`. Ends on `time.monotonic`.

    Every call raises TimeoutError at its end and OSError if the link drops.
    """

    def __init__(self, host: str, port: int, end: float, ssl: SSLContext | None = None) -> None:
        self._socket = socket.create_connection((host, port), timeout=_left(end))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = ssl is not None
        if ssl is not None:
            self._socket = ssl.wrap_socket(self._socket, server_hostname=host)
        # A timeout of Python's own would cost an ioctl for every change of it.
        self._socket.setblocking(False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)

    def send(self, buffers: list[Buffer], end: float) -> None:
        """Write all of `buffers`."""
        if self._tls:
            buffers = [b"".join(buffers)]
        while buffers:
            try:
                sent = self._send(buffers)
            except SSLWantReadError:
                self._wait(self._readable, end)
            except (BlockingIOError, SSLWantWriteError):
                self._wait(self._writable, end)
            else:
                while buffers and sent >= len(buffers[0]):
                    sent -= len(buffers.pop(0))
                if sent:
                    buffers[0] = memoryview(buffers[0])[sent:]

    def receive(self, buffer: memoryview, end: float) -> int:
        """Read what is there into `buffer`: its length in bytes, 0 at the end of the stream."""
        if not self._tls:  # with TLS the bytes may have been read already
            self._wait(self._readable, end)
        while True:
            try:
                return self._socket.recv_into(buffer)
            except (BlockingIOError, SSLWantReadError):
                self._wait(self._readable, end)
            except SSLWantWriteError:
                self._wait(self._writable, end)

    def ready(self) -> bool:
        """Whether there is something to receive, the end of the stream included."""
        return bool(self._readable.poll(0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, buffers: list[Buffer]) -> int:
        return self._socket.send(buffers[0]) if self._tls else self._socket.sendmsg(buffers)

    def _wait(self, for_what: select.poll, end: float) -> None:
        if not for_what.poll(min(_left(end), LONGEST) * 1000):
            raise TimeoutError


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
