# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""picows: websockets in Cython; callbacks on both sides, no future per round trip.

A frame lies in picows' receive buffer and is gone after the callback, so both sides take its
payload out, as every other library does before it hands a message over: a batcher, an executor
or a model works on it later. `get_payload_as_bytes` is the fastest way to do so.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

from bench.rivals.harness import REPLY, ready, uvloop_loop

LABEL = "picows: uvloop, callbacks, one frame each way, payloads taken as bytes"


class _Server(WSListener):
    reply = bytes(REPLY)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.taken = frame.get_payload_as_bytes()
        transport.send(WSMsgType.BINARY, self.reply)


def serve() -> None:
    """See the package."""
    loop = uvloop_loop()
    listening = ws_create_server(lambda request: _Server(), "127.0.0.1", 0)
    ready(loop.run_until_complete(listening).sockets[0].getsockname()[1])
    loop.run_forever()


class _Client(WSListener):
    heard: Any = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.taken = frame.get_payload_as_bytes()
        self.heard(transport)


class drive:
    """See the package."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = uvloop_loop()
        self._links: list[tuple[WSTransport, _Client]] = []

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """See Drive."""
        return self._loop.run_until_complete(self._run(size, concurrency, seconds))

    async def _run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        while len(self._links) < concurrency:
            self._links.append(await ws_connect(_Client, f"ws://127.0.0.1:{self._port}/"))
        payload = os.urandom(size)
        times: list[float] = []
        end = time.perf_counter() + seconds
        done = asyncio.get_running_loop().create_future()
        left = concurrency

        def start(transport: WSTransport, client: _Client) -> None:
            began = time.perf_counter()

            def heard(transport: WSTransport) -> None:
                nonlocal left, began
                now = time.perf_counter()
                times.append(now - began)
                if now < end:
                    began = now
                    transport.send(WSMsgType.BINARY, payload)
                else:
                    left -= 1
                    if not left:
                        done.set_result(None)

            client.heard = heard
            transport.send(WSMsgType.BINARY, payload)

        for transport, client in self._links[:concurrency]:
            start(transport, client)
        await done
        return times
