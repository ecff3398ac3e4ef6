"""Raw sockets with epoll: 4 bytes of length, the payload; 200 bytes back. The yardstick."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time

from bench.rivals.harness import REPLY, ready

LABEL = "raw epoll sockets, buffers reused, TCP_NODELAY"

LENGTH = struct.Struct("!I")


class _Reader:
    """Receives length-prefixed payloads into one buffer that is used again."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray(1 << 20)
        self.view = memoryview(self.buffer)
        self.have = 0

    def read(self) -> bool:
        """Whether a whole message is in the buffer, after one read; it is then dropped."""
        n = self.sock.recv_into(self.view[self.have :])
        if not n:
            raise ConnectionError
        self.have += n
        if self.have < 4 or self.have < 4 + LENGTH.unpack_from(self.buffer)[0]:
            return False
        self.have = 0
        return True


def _send(sock: socket.socket, payload: bytes) -> None:
    sent = 0
    with contextlib.suppress(BlockingIOError):
        sent = sock.sendmsg([LENGTH.pack(len(payload)), payload])
    while sent < 4 + len(payload):
        select.select([], [sock], [], 10)
        assert sent >= 4
        sent += sock.send(memoryview(payload)[sent - 4 :])


def serve() -> None:
    """See the package."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    ready(listening.getsockname()[1])
    poll = select.epoll()
    poll.register(listening, select.EPOLLIN)
    readers: dict[int, _Reader] = {}
    reply = bytes(REPLY)
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                sock, _ = listening.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                readers[sock.fileno()] = _Reader(sock)
                poll.register(sock, select.EPOLLIN)
                continue
            reader = readers[fd]
            try:
                if reader.read():
                    _send(reader.sock, reply)
            except ConnectionError:
                poll.unregister(fd)
                readers.pop(fd).sock.close()


class drive:
    """See the package."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._readers: dict[int, _Reader] = {}
        self._poll = select.epoll()

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """See Drive."""
        while len(self._readers) < concurrency:
            sock = socket.create_connection(("127.0.0.1", self._port))
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._readers[sock.fileno()] = _Reader(sock)
            self._poll.register(sock, select.EPOLLIN)
        payload = os.urandom(size)
        times: list[float] = []
        began: dict[int, float] = {}
        end = time.perf_counter() + seconds
        for fd, reader in list(self._readers.items())[:concurrency]:
            began[fd] = time.perf_counter()
            _send(reader.sock, payload)
        while began:
            for fd, _ in self._poll.poll():
                reader = self._readers[fd]
                if reader.read():
                    now = time.perf_counter()
                    times.append(now - began[fd])
                    if now < end:
                        began[fd] = now
                        _send(reader.sock, payload)
                    else:
                        del began[fd]
        return times
