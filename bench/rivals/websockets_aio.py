# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""websockets: its new asyncio implementation, no compression, no pings, no size limit."""

from __future__ import annotations

import asyncio

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen

from bench.rivals.harness import REPLY, Ask, AsyncDrive, ready, uvloop_loop

LABEL = "websockets: asyncio, uvloop, C masking, no compression"


async def _answer(connection: ServerConnection) -> None:
    reply = bytes(REPLY)
    async for _ in connection:
        await connection.send(reply)


async def _serve() -> None:
    server = await listen(
        _answer, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None
    )
    ready(next(iter(server.sockets)).getsockname()[1])
    await asyncio.Event().wait()


def serve() -> None:
    """See the package."""
    uvloop_loop().run_until_complete(_serve())


async def _connect(port: int) -> Ask:
    connection = await connect(
        f"ws://127.0.0.1:{port}", compression=None, max_size=None, ping_interval=None
    )

    async def ask(payload: bytes) -> None:
        await connection.send(payload)
        await connection.recv()

    return ask


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, _connect, uvloop_loop())
