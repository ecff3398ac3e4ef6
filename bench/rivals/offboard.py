"""Offboard, the whole message layer on: uvloop, a callback answers on both sides."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np

from bench.rivals.harness import REPLY, ready, uvloop_loop
from common.channel import Channel
from common.channel import serve as listen
from common.client import Client, Reply
from common.errors import OffboardError
from common.messages import Hello, Message, Query, Result, Tensor, Welcome
from common.protocol import Timing

LABEL = "offboard, uvloop, callbacks, typed messages, ids, deadlines, limits"

DEADLINE = 10.0
TIMING = Timing(ping=86_400.0)
"""The bench's clients do not listen between two bursts: no pings."""
CREDITS = 8
PROBABILITIES = {"probabilities": Tensor(bytes(REPLY), "float32", (REPLY // 4,))}


def query(size: int) -> Query:
    """A query with one uint8 tensor of `size` bytes."""
    data = np.frombuffer(os.urandom(size), np.uint8)
    return Query("raw", "whole", tensors={"pixels": Tensor(data.data, "uint8", data.shape)})


def result(id: int) -> Result:
    """A result with REPLY bytes of probabilities."""
    # A time that differs from reply to reply, as real ones do: no head repeats.
    return Result("edge", tensors=PROBABILITIES, server_ms=id * 0.125, queue_ms=0.5, id=id)


def welcome(channel: Channel) -> Welcome:
    """What the bench's server says to a Hello."""
    return Welcome(channel.version, "bench", "bench", "", ("raw",), 64 << 20, CREDITS)


class Session:
    """Answers every query at once."""

    def __init__(self, channel: Channel) -> None:
        pass

    def on_message(self, channel: Channel, message: Message) -> None:
        """See channel.Handler."""
        if type(message) is Query:
            channel.send(result(message.id))
        elif type(message) is Hello:
            channel.accept(welcome(channel))

    def on_closed(self, channel: Channel, reason: str) -> None:
        """See channel.Handler."""


def serve_on(loop: asyncio.AbstractEventLoop) -> None:
    """Serve on `loop` for ever."""
    asyncio.set_event_loop(loop)
    ready(loop.run_until_complete(listen("127.0.0.1", 0, Session, timing=TIMING)).port)
    loop.run_forever()


def serve() -> None:
    """See the package."""
    serve_on(uvloop_loop())


class CallbackDrive:
    """`Client.submit` on as many connections as are to be in flight."""

    def __init__(self, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self._port, self._loop = port, loop
        self._clients: list[Client] = []

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """See Drive."""
        return self._loop.run_until_complete(self._run(size, concurrency, seconds))

    async def _run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        while len(self._clients) < concurrency:
            client = Client.connect("127.0.0.1", self._port, timing=TIMING)
            self._clients.append(await client.__aenter__())
        asked = query(size)
        times: list[float] = []
        end = time.perf_counter() + seconds
        done = asyncio.get_running_loop().create_future()
        left = concurrency

        def start(client: Client) -> None:
            began = time.perf_counter()

            def on_reply(reply: Reply | OffboardError) -> None:
                nonlocal left, began
                if type(reply) is not Reply:
                    raise SystemExit(f"no answer: {reply}")
                now = time.perf_counter()
                times.append(now - began)
                if now < end:
                    began = now
                    client.submit(asked, on_reply, DEADLINE)
                else:
                    left -= 1
                    if not left:
                        done.set_result(None)

            client.submit(asked, on_reply, DEADLINE)

        for client in self._clients[:concurrency]:
            start(client)
        await done
        return times


def drive(port: int) -> CallbackDrive:
    """See the package."""
    return CallbackDrive(port, uvloop_loop())
