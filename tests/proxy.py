"""A TCP proxy that misbehaves on demand: it stalls, cuts, half-closes, refuses and comes back.

async with Proxy.to(server_port) as proxy:
    client connects to 127.0.0.1:proxy.port
    proxy.stall(); ...; proxy.resume()      # bytes wait in the proxy, both directions
    proxy.cut()                             # reset every connection now
    proxy.cut_after(1000)                   # reset a connection after 1000 bytes up
    proxy.half_close()                      # end the way to the client only
    await proxy.stop(); await proxy.start() # nobody listens; then somebody does again
"""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType

PIECE = 64 << 10
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        """How many came so far."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._down: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = asyncio.Event()
        self._running.set()
        self._up_left: int | None = None

    @classmethod
    def to(cls, target: int) -> Proxy:
        """A proxy to 127.0.0.1:`target`, to be entered with `async with`."""
        return cls(target)

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the first time."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset every connection and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        self.resume()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self) -> None:
        """Forward nothing until `resume`."""
        self._running.clear()

    def resume(self) -> None:
        """Forward again, what was held back first."""
        self._running.set()

    def cut(self) -> None:
        """Reset every connection, as a router that reboots."""
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    def cut_after(self, n: int) -> None:
        """Cut once `n` more bytes have gone to the server."""
        self._up_left = n

    def half_close(self) -> None:
        """End the stream to every client; theirs to the server stays open."""
        for writer in list(self._down):
            if not writer.is_closing():
                writer.write_eof()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        self._down.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            self._down.discard(writer)
            return
        self._writers.add(up_writer)
        task = asyncio.create_task(self._both(reader, writer, up_reader, up_writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        try:
            await asyncio.gather(
                self._forward(reader, up_writer, up=True),
                self._forward(up_reader, writer, up=False),
            )
        finally:
            for each in (writer, up_writer):
                each.transport.abort()
                self._writers.discard(each)
                self._down.discard(each)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool
    ) -> None:
        try:
            while data := await reader.read(PIECE):
                await self._running.wait()
                if up and self._up_left is not None:
                    data = data[: self._up_left]
                    self._up_left -= len(data)
                writer.write(data)
                await writer.drain()
                if up and self._up_left == 0:
                    self._up_left = None
                    await asyncio.sleep(0.02)  # what was forwarded is to arrive
                    self.cut()
            if not writer.is_closing():
                writer.write_eof()
        except OSError:
            writer.transport.abort()
