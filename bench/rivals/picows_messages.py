# mypy: ignore-errors
# (what it drives is an extra that need not be installed, and is not typed)
"""picows carrying what Offboard carries: typed, checked messages with ids, as websocket frames.

Not something anyone uses: it shows how much of the distance between picows and Offboard is the
message layer (written in Python) and how much the transport (picows is Cython).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

from bench.rivals.harness import ready, uvloop_loop
from bench.rivals.offboard import query, result
from common.messages import Message, Query, Result
from common.parser import Parser
from common.wire import DEFAULT, encode

LABEL = "picows under Offboard's messages"


class _Listener(WSListener):
    def __init__(self) -> None:
        super().__init__()
        self._parser = Parser(DEFAULT)

    def message(self, frame: WSFrame) -> Message | None:
        """What a frame holds: it must be copied, for picows uses its buffer again."""
        payload = frame.get_payload_as_memoryview()
        at = 0
        while at < len(payload):
            view = self._parser.get_buffer()
            n = min(len(view), len(payload) - at)
            view[:n] = payload[at : at + n]
            at += n
            message = self._parser.next(n)
        return message


class _Server(_Listener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        message = self.message(frame)
        if type(message) is Query:
            transport.send(WSMsgType.BINARY, b"".join(encode(result(message.id))[0]))


def serve() -> None:
    """See the package."""
    loop = uvloop_loop()
    listening = ws_create_server(lambda request: _Server(), "127.0.0.1", 0)
    ready(loop.run_until_complete(listening).sockets[0].getsockname()[1])
    loop.run_forever()


class _Client(_Listener):
    heard: Any = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if type(self.message(frame)) is Result:
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
        asked = query(size)
        times: list[float] = []
        end = time.perf_counter() + seconds
        done = asyncio.get_running_loop().create_future()
        left = concurrency
        id = 0

        def send(transport: WSTransport) -> None:
            nonlocal id
            id += 1
            transport.send(WSMsgType.BINARY, b"".join(encode(asked, id, 10_000)[0]))

        def start(transport: WSTransport, client: _Client) -> None:
            began = time.perf_counter()

            def heard(transport: WSTransport) -> None:
                nonlocal left, began
                now = time.perf_counter()
                times.append(now - began)
                if now < end:
                    began = now
                    send(transport)
                else:
                    left -= 1
                    if not left:
                        done.set_result(None)

            client.heard = heard
            send(transport)

        for transport, client in self._links[:concurrency]:
            start(transport, client)
        await done
        return times
