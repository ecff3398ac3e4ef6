"""One device's conversation, over a real socket: answers, refusals, rounds, cancels, files."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.channel import Channel, connect
from common.client import Client
from common.codec import decode
from common.errors import Refused
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
)
from common.wire import DEFAULT, VERSIONS, Limits
from server.memory import MemoryLimits
from server.service import BundleFile, SessionLimits
from server.session import CHUNK
from tests.serving import BUNDLE, WAIT, Running, Scripted, query, running, soon


class Peer:
    """A device that says exactly what it is told and writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.closed = ""
        self.channel: Channel
        self._news = asyncio.Event()

    def on_message(self, channel: Channel, message: Message) -> None:
        self.heard.append(message)
        self._news.set()

    def on_closed(self, channel: Channel, reason: str) -> None:
        self.closed = reason
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds after something was heard."""
        async with asyncio.timeout(WAIT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def answer(self, id: int) -> Any:
        """The answer to query `id`; it leaves the list."""
        await self.until(lambda: bool(self.closed) or any(m.id == id for m in self.heard))
        found = next(m for m in self.heard if m.id == id)
        self.heard.remove(found)
        return found


def hello(token: str = "", packet_limit: int = DEFAULT.packet) -> Hello:
    return Hello(VERSIONS, "a test", ("scripted",), packet_limit, token)


async def join(server: Running, token: str = "") -> Peer:
    peer = Peer()
    peer.channel = await connect("127.0.0.1", server.port, hello(token), peer)
    return peer


def converse(
    strategy: Scripted, test: Callable[[Running, Peer], Awaitable[None]], **options: Any
) -> None:
    """Run `test` with a server of `strategy` and one device that has joined."""

    async def main() -> None:
        async with running({"scripted": strategy}, **options) as server:
            peer = await join(server)
            try:
                await test(server, peer)
            finally:
                peer.channel.close()
                await asyncio.wait([peer.channel.gone], timeout=WAIT)

    asyncio.run(main())


async def entered(strategy: Scripted) -> None:
    assert await asyncio.to_thread(strategy.entered.wait, WAIT)
    strategy.entered.clear()


def row(result: Result) -> list[float]:
    return list(map(float, decode(result.tensors["probabilities"])))


def test_the_welcome_says_what_is_served() -> None:
    async def test(server: Running, peer: Peer) -> None:
        welcome = peer.channel.welcome
        assert welcome is not None
        assert (welcome.profile, welcome.digest) == ("scripted", "d" * 64)
        assert welcome.strategies == ("scripted",)
        assert welcome.credits == SessionLimits().credits

    converse(Scripted(), test)


def test_a_query_gets_its_result_and_its_times() -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(5), id=9)
        result = await peer.answer(9)
        assert type(result) is Result
        assert row(result) == [5.0, 1.0]
        assert result.source == "edge"
        assert result.wants is None
        assert 0 <= result.queue_ms <= result.server_ms < WAIT * 1e3
        metrics = server.service.metrics
        assert metrics.results == {("scripted", "whole"): 1}
        assert min(metrics.bytes_in, metrics.bytes_out) > 30

    converse(Scripted(), test)


def test_many_in_flight_each_get_their_own() -> None:
    async def test(server: Running, peer: Peer) -> None:
        for id in range(1, 33):
            peer.channel.send(query(id + 100), id=id)
        for id in range(32, 0, -1):
            assert row(await peer.answer(id))[0] == id + 100

    converse(Scripted(), test)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Query("nothing", "whole"), "unknown"),
        (Query("../scripted", "whole"), "unknown"),
        (query(step="recall", memory=77), "forgotten"),
        (query(step="recall"), "forgotten"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_rest_goes_on(asked: Query, code: str) -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(asked, id=1)
        refusal = await peer.answer(1)
        assert type(refusal) is Refusal
        assert (refusal.code, refusal.retryable) == (code, False)
        assert refusal.reason
        peer.channel.send(query(5), id=1)
        assert type(await peer.answer(1)) is Result

    converse(Scripted(), test)


def test_round_two_finds_round_one_once() -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(42, "remember"), id=1)
        first = await peer.answer(1)
        assert first.wants == b"\x01"
        assert row(first) == [42.0, 1.0]  # the provisional answer
        assert server.service.memory_bytes == 1
        peer.channel.send(query(0, "recall", memory=1), id=2)
        assert row(await peer.answer(2)) == [42.0, 1.0]
        peer.channel.send(query(0, "recall", memory=1), id=3)
        assert (await peer.answer(3)).code == "forgotten"
        assert server.service.memory_bytes == 0

    converse(Scripted(), test)


def test_a_device_cannot_reach_anothers_memory() -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(42, "remember"), id=1)
        await peer.answer(1)
        other = await join(server)
        other.channel.send(query(0, "recall", memory=1), id=1)
        assert (await other.answer(1)).code == "forgotten"
        other.channel.close()
        await asyncio.wait([other.channel.gone], timeout=WAIT)

    converse(Scripted(), test)


def test_memory_ends_with_its_connection_and_with_time() -> None:
    async def test(server: Running, peer: Peer) -> None:
        (session,) = server.service.sessions
        peer.channel.send(query(1, "remember"), id=1)
        await peer.answer(1)
        await asyncio.sleep(0.06)
        peer.channel.send(query(0, "recall", memory=1), id=2)
        assert (await peer.answer(2)).code == "forgotten"
        peer.channel.send(query(1, "remember"), id=3)
        await peer.answer(3)
        peer.channel.close()
        await asyncio.wait([peer.channel.gone], timeout=WAIT)
        await soon(lambda: not server.service.sessions)
        assert session.memory.bytes == 0

    limits = SessionLimits(memory=MemoryLimits(seconds=0.05))
    converse(Scripted(), test, limits=limits)


def test_without_room_to_remember_there_is_one_round_and_it_is_said() -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(1, "remember"), id=1)
        result = await peer.answer(1)
        assert result.wants is None
        assert "no room" in result.degraded

    converse(Scripted(), test, limits=SessionLimits(memory=MemoryLimits(bytes=0)))


def test_a_full_server_sheds_retryably_and_keeps_the_memory() -> None:
    strategy = Scripted()

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(42, "remember"), id=1)
        await peer.answer(1)
        strategy.hold = threading.Event()
        strategy.entered.clear()
        peer.channel.send(query(0), id=2)
        await entered(strategy)
        peer.channel.send(query(0, "recall", memory=1), id=3)
        refusal = await peer.answer(3)
        assert (refusal.code, refusal.retryable) == ("busy", True)
        strategy.hold.set()
        await peer.answer(2)
        peer.channel.send(query(0, "recall", memory=1), id=4)
        assert row(await peer.answer(4))[0] == 42.0

    converse(strategy, test, limit=1)


def test_a_cancelled_query_is_answered_at_once_and_never_computed() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(0), id=1)
        await entered(strategy)
        peer.channel.send(query(1), id=2)
        peer.channel.send(Cancel(id=2))
        assert (await peer.answer(2)).code == "cancelled"
        peer.channel.send(query(2), id=2)  # the id is free again
        await soon(lambda: server.service.executor.pending == 3)
        assert strategy.hold is not None
        strategy.hold.set()
        assert row(await peer.answer(2))[0] == 2.0
        assert strategy.forwards == [[0], [2]]

    converse(strategy, test)


def test_an_answer_past_its_deadline_is_a_refusal() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(0, "remember"), id=1, ms_left=60_000)
        await entered(strategy)
        peer.channel.send(query(1), id=2, ms_left=60_000)
        (session,) = server.service.sessions
        await soon(lambda: 2 in session._jobs)
        for job in session._jobs.values():  # as if the time had passed
            assert 50 < job.deadline - time.monotonic() < 60
            job.deadline = time.monotonic()
        assert strategy.hold is not None
        strategy.hold.set()
        assert (await peer.answer(1)).code == "expired"  # it ran, too long
        assert (await peer.answer(2)).code == "expired"  # it never ran
        assert strategy.forwards == [[0]]
        assert server.service.memory_bytes == 0

    converse(strategy, test)


def test_works_of_a_device_that_left_are_dropped() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(0), id=1)
        await entered(strategy)
        peer.channel.send(query(1), id=2)
        other = await join(server)
        other.channel.send(query(2), id=1)
        await soon(lambda: server.service.executor.pending >= 3)
        peer.channel.abort("gone")
        await soon(lambda: len(server.service.sessions) <= 1)
        assert strategy.hold is not None
        strategy.hold.set()
        assert row(await other.answer(1)) == [2.0, 1.0]
        assert strategy.forwards == [[0], [2]]
        other.channel.close()
        await asyncio.wait([other.channel.gone], timeout=WAIT)

    converse(strategy, test)


@pytest.mark.parametrize("path", sorted(BUNDLE))
def test_a_device_fetches_its_bundle(path: str) -> None:
    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as server,
            Client.connect("127.0.0.1", server.port) as client,
        ):
            assert await client.fetch(path, deadline=WAIT) == BUNDLE[path].data

    asyncio.run(main())


def test_a_fetch_goes_on_from_an_offset_and_comes_in_pieces() -> None:
    data = BUNDLE["device/model"].data

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(Fetch("device/model", offset=1000), id=1)
        got = bytearray()
        while len(got) < len(data) - 1000:
            chunk = await peer.answer(1)
            assert type(chunk) is Chunk
            assert chunk.offset == 1000 + len(got)
            assert chunk.total == len(data)
            got += chunk.tensors["data"].data
            assert len(chunk.tensors["data"].data) <= CHUNK
        assert got == data[1000:]

    converse(Scripted(), test)


@pytest.mark.parametrize(
    ("path", "offset", "code"),
    [
        ("device/none", 0, "unknown"),
        ("../profile.json", 0, "unknown"),
        ("device/model", 10**9, "bad"),
    ],
)
def test_what_cannot_be_fetched_is_refused(path: str, offset: int, code: str) -> None:
    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(Fetch(path, offset), id=1)
        assert (await peer.answer(1)).code == code

    converse(Scripted(), test)


def test_a_query_does_not_wait_for_a_file() -> None:
    """The file is longer than any buffer on the way; the result comes before its end."""
    chunks = 400

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(Fetch("large"), id=1)
        peer.channel.send(query(5), id=2)
        await peer.until(lambda: any(type(m) is Result for m in peer.heard))
        assert len(peer.heard) < chunks
        await peer.until(lambda: len(peer.heard) == chunks + 1)

    large = {"large": BundleFile(bytes(chunks * CHUNK), "0" * 64)}
    converse(Scripted(), test, bundle=large)


@pytest.mark.parametrize("token", ["", "wrong", "secre", "secret2", "sécret"])
def test_a_wrong_token_is_turned_away(token: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running({"scripted": Scripted()}, token="secret") as server:
            peer = Peer()
            with pytest.raises(Refused, match="token"):
                await connect("127.0.0.1", server.port, hello(token), peer)
            assert not server.service.sessions
            assert server.service.metrics.wrong_tokens == 1

    asyncio.run(main())
    assert "wrong token" in caplog.text


def test_the_right_token_is_let_in() -> None:
    async def main() -> None:
        async with running({"scripted": Scripted()}, token="secret") as server:
            peer = await join(server, "secret")
            peer.channel.send(query(5), id=1)
            assert type(await peer.answer(1)) is Result
            peer.channel.close()
            await asyncio.wait([peer.channel.gone], timeout=WAIT)

    asyncio.run(main())


def test_a_device_that_takes_too_little_is_told() -> None:
    async def main() -> None:
        async with running({"scripted": Scripted()}) as server:
            with pytest.raises(Refused, match="packet_limit"):
                await connect("127.0.0.1", server.port, hello(packet_limit=4096), Peer())

    asyncio.run(main())


def test_a_packet_larger_than_the_profile_needs_ends_its_connection_only() -> None:
    async def test(server: Running, peer: Peer) -> None:
        other = await join(server)
        assert other.channel.welcome is not None
        assert other.channel.welcome.packet_limit == server.service.wire.packet
        large = Tensor(bytes(server.service.wire.body + 1), "uint8", (1,), "zstd")
        other.channel._peer_limit = 1 << 30  # a device that does not care
        other.channel.send(replace(query(), tensors={"x": large}), id=1)
        await soon(lambda: bool(other.closed))
        assert "body" in other.closed
        peer.channel.send(query(5), id=1)
        assert row(await peer.answer(1)) == [5.0, 1.0]

    converse(Scripted(), test, wire=Limits(body=100_000))


def test_queries_in_flight_are_answered_while_draining() -> None:
    strategy = Scripted(hold=threading.Event())

    async def main() -> None:
        async with running({"scripted": strategy}) as server:
            peer = await join(server)
            peer.channel.send(query(1), id=1)
            await entered(strategy)
            closing = asyncio.create_task(server.listener.close("restarting", grace=WAIT))
            await soon(lambda: peer.channel.bye is not None)
            assert peer.channel.bye == Bye("drain", "restarting")
            assert strategy.hold is not None
            strategy.hold.set()
            assert row(await peer.answer(1))[0] == 1.0
            await peer.until(lambda: bool(peer.closed))
            await asyncio.wait_for(closing, WAIT)

    asyncio.run(main())


def test_the_probabilities_are_float32_whatever_the_strategy_made() -> None:
    class Doubles(Scripted):
        def forward(self, works: Any) -> Any:
            outcomes = super().forward(works)
            for outcome in outcomes:
                object.__setattr__(outcome, "probabilities", outcome.probabilities.astype(float))
            return outcomes

    async def test(server: Running, peer: Peer) -> None:
        peer.channel.send(query(5), id=1)
        result = await peer.answer(1)
        assert result.tensors["probabilities"].dtype == "float32"
        assert decode(result.tensors["probabilities"]).dtype == np.float32
        assert row(result) == [5.0, 1.0]

    converse(Doubles(), test)
