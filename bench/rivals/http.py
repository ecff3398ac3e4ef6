# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""HTTP: uvicorn with httptools on uvloop, a bare ASGI application; aiohttp's client."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import uvicorn

from bench.rivals.harness import REPLY, Ask, AsyncDrive, ready, uvloop_loop

LABEL = "HTTP/1.1 keep-alive: uvicorn + httptools + uvloop, bare ASGI; aiohttp client"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    body = []
    while True:
        event = await receive()
        body.append(event["body"])
        if not event.get("more_body"):
            break
    b"".join(body)
    headers = [(b"content-length", str(REPLY).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(REPLY)})


def serve() -> None:
    """See the package."""
    listening = socket.create_server(("127.0.0.1", 0))
    ready(listening.getsockname()[1])
    config = uvicorn.Config(
        _app, loop="uvloop", http="httptools", lifespan="off", access_log=False,
        log_level="warning",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


async def connect_http(port: int) -> Ask:
    """A keep-alive connection to post to."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url = f"http://127.0.0.1:{port}/ask"

    async def ask(payload: bytes) -> None:
        async with session.post(url, data=payload) as response:
            await response.read()
            response.raise_for_status()

    return ask


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, connect_http, uvloop_loop(), shared=True)
