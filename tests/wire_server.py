"""A server of the bare wire for tests, and a decorator that runs a test on both event loops."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.channel import Channel, Listener, serve
from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Query,
    Refusal,
    Result,
    Tensor,
    Welcome,
)
from common.protocol import Timing

LIMIT = 60.0
"""Seconds any test may take."""

FILE = bytes(range(256)) * 2000
PIECE = 50_000


def _loops() -> list[Any]:
    try:
        import uvloop
    except ImportError:
        return [pytest.param(asyncio.new_event_loop, id="asyncio")]
    return [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(uvloop.new_event_loop, id="uvloop"),
    ]


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on plain asyncio and on uvloop; it must end and leave no task behind."""

    async def whole() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(LIMIT):
            await test()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before
        assert not left, left

    @pytest.mark.parametrize("loop", _loops())
    def run(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(whole())

    run.__name__, run.__module__ = test.__name__, test.__module__
    return run


class Session:
    """Answers by the query's step: echo, hold (never), refuse, later (after `seconds`), crash."""

    token = ""
    credits = 8

    def __init__(self, channel: Channel) -> None:
        self.cancelled: list[int] = []
        self.queries: list[Query] = []
        self.closed: list[str] = []

    def on_message(self, channel: Channel, message: Message) -> None:
        match message:
            case Hello():
                if message.token != self.token:
                    channel.close(Bye("refused", "wrong token"))
                    return
                channel.accept(
                    Welcome(channel.version, "test", "p", "d", (), 64 << 20, self.credits)
                )
            case Query():
                self.queries.append(message)
                self.answer(channel, message)
            case Cancel():
                self.cancelled.append(message.id)
                channel.send(Refusal("cancelled", "", False, id=message.id))
            case Fetch():
                self.fetched(channel, message)

    def answer(self, channel: Channel, query: Query) -> None:
        match query.step:
            case "echo":
                channel.send(Result("edge", query.tensors, id=query.id))
            case "refuse":
                channel.send(Refusal("busy", "come back", True, id=query.id))
            case "later":
                seconds = float(str(query.params["seconds"]))
                result = Result("edge", query.tensors, id=query.id)
                asyncio.get_running_loop().call_later(seconds, self.late, channel, result)
            case "crash":
                raise RuntimeError("a bug in the server")

    def late(self, channel: Channel, result: Result) -> None:
        if result.id in channel.outstanding:
            channel.send(result)

    def fetched(self, channel: Channel, fetch: Fetch) -> None:
        if fetch.path != "file":
            channel.send(Refusal("unknown", f"no {fetch.path!r}", False, id=fetch.id))
            return
        channel.stream(fetch.id, pieces(fetch.offset))

    def on_closed(self, channel: Channel, reason: str) -> None:
        self.closed.append(reason)


def pieces(offset: int, digest: str | None = None) -> Iterator[Chunk]:
    """FILE from `offset` on."""
    digest = digest or hashlib.sha256(FILE).hexdigest()
    for at in range(offset, len(FILE), PIECE):
        piece = FILE[at : at + PIECE]
        yield Chunk(at, len(FILE), digest, {"data": Tensor(piece, "uint8", (len(piece),))})


@asynccontextmanager
async def server(
    kind: type[Session] = Session, port: int = 0, timing: Timing | None = None, **options: Any
) -> AsyncIterator[tuple[Listener, list[Session]]]:
    """A listener on a free port, and the sessions it has had."""
    sessions: list[Session] = []

    def attach(channel: Channel) -> Session:
        session = kind(channel)
        sessions.append(session)
        return session

    listener = await serve("127.0.0.1", port, attach, timing=timing, **options)
    try:
        yield listener, sessions
    finally:
        await listener.close("the test is over", grace=0.5)


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions are anything at all
            await asyncio.sleep(0.005)
