# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""ZeroMQ, asyncio: DEALER to ROUTER over TCP, frames not copied where that pays."""

from __future__ import annotations

import zmq
import zmq.asyncio

from bench.rivals.harness import REPLY, Ask, AsyncDrive, ready, uvloop_loop

LABEL = "pyzmq asyncio: DEALER and ROUTER, uvloop, zero-copy from 64 KB"

BIG = 64 << 10


async def _serve() -> None:
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    ready(socket.bind_to_random_port("tcp://127.0.0.1"))
    reply = bytes(REPLY)
    while True:
        who, _ = await socket.recv_multipart(copy=False)
        await socket.send_multipart([who, reply])


def serve() -> None:
    """See the package."""
    uvloop_loop().run_until_complete(_serve())


async def _connect(port: int) -> Ask:
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")

    async def ask(payload: bytes) -> None:
        await socket.send(payload, copy=len(payload) < BIG)
        await socket.recv()

    return ask


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, _connect, uvloop_loop())
