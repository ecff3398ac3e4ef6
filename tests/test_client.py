"""The asyncio client: answers, credits, deadlines, cancellation, fetch."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from common.channel import Channel
from common.client import Client, Reply
from common.codec import decode, encode
from common.errors import OffboardError, ProtocolError, Refused, Unavailable
from common.messages import NO_DEADLINE, Fetch, Query
from tests.wire_server import FILE, Session, on_both_loops, pieces, server, until

HOLD = Query("raw", "hold")


def echo(size: int, fill: int = 0) -> Query:
    pixels = np.full(size, fill, np.uint8)
    return Query("raw", "echo", tensors={"x": encode(pixels)})


def later(seconds: float, fill: int = 0) -> Query:
    tensors = {"x": encode(np.array([fill], np.uint8))}
    return Query("raw", "later", {"seconds": seconds}, tensors)


@on_both_loops
async def test_ask() -> None:
    async with (
        server() as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        assert client.connected
        assert client.welcome is not None
        assert client.welcome.agent == "test"
        reply = await client.ask(echo(50_000, 7), deadline=5.0)
        assert (decode(reply.result.tensors["x"]) == 7).all()
        assert 50_000 < reply.bytes_up < 50_100
        assert 50_000 < reply.bytes_down < 50_150
        assert 0 < reply.elapsed_ms < 5000
        assert reply.result.id == sessions[0].queries[0].id == 1
        assert 4900 < sessions[0].queries[0].ms_left <= 5000
        await client.ask(echo(1))
        assert sessions[0].queries[1].ms_left == NO_DEADLINE
        with pytest.raises(Refused, match="busy: come back") as caught:
            await client.ask(Query("raw", "refuse"))
        assert caught.value.retryable
        with pytest.raises(Refused, match="bad: packet of"):
            await client.ask(echo(65 << 20))


@on_both_loops
async def test_answers_out_of_order_land_where_they_belong() -> None:
    async with (
        server() as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        fills = range(30)
        asked = [client.ask(later(0.002 * ((7 * n) % 30), n), deadline=5.0) for n in fills]
        replies = await asyncio.gather(*asked)
        assert [int(decode(r.result.tensors["x"])[0]) for r in replies] == list(fills)
        assert len({r.result.id for r in replies}) == 30


@on_both_loops
async def test_submit_calls_back_once_and_never_at_once() -> None:
    async with (
        server() as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        got: list[Reply | OffboardError] = []
        pending = client.submit(echo(10), got.append, deadline=5.0)
        assert pending.id == 1
        await until(lambda: got)
        client.submit(HOLD, got.append, deadline=0.02)
        await until(lambda: len(got) == 2)
        client.submit(Query("raw", "refuse"), got.append)
        await until(lambda: len(got) == 3)
        assert [type(g) for g in got] == [Reply, Unavailable, Refused]
        silent = client.submit(HOLD, got.append)
        client.cancel(silent)
        client.cancel(silent)
        await client.close()
        client.submit(echo(1), got.append)
        assert len(got) == 3
        await until(lambda: len(got) == 4)
        assert isinstance(got[3], Unavailable)


@on_both_loops
async def test_a_failing_callback_harms_nobody() -> None:
    async with (
        server() as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):

        def bad(reply: Reply | OffboardError) -> None:
            raise RuntimeError("a bug in the caller")

        client.submit(echo(1), bad)
        assert await client.ask(echo(2), deadline=5.0)


@on_both_loops
async def test_credits_are_waited_for_within_the_deadline() -> None:
    class Two(Session):
        credits = 2

    async with (
        server(Two) as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        replies = await asyncio.gather(*(client.ask(later(0.02, n), 5.0) for n in range(9)))
        assert len(replies) == 9
        assert replies[-1].elapsed_ms > 60  # the wait for a credit counts
        holds = [asyncio.create_task(client.ask(HOLD)) for _ in range(2)]
        await until(lambda: len(sessions[0].queries) == 11)
        with pytest.raises(Unavailable, match="no answer within"):
            await client.ask(echo(1), deadline=0.05)
        assert len(sessions[0].queries) == 11  # it was never sent
        holds[0].cancel()
        assert await client.ask(echo(1), deadline=5.0)
        holds[1].cancel()
        await asyncio.gather(*holds, return_exceptions=True)


@on_both_loops
async def test_a_deadline_fails_in_time_and_tells_the_server() -> None:
    async with (
        server() as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):

        async def late(deadline: float) -> float:
            began = time.monotonic()
            with pytest.raises(Unavailable, match="no answer within"):
                await client.ask(HOLD, deadline)
            return time.monotonic() - began

        # A long deadline first: the timer must be moved forward for the short ones.
        took = await asyncio.gather(late(0.3), late(0.1), late(0.05), late(0.2))
        for seconds, deadline in zip(took, (0.3, 0.1, 0.05, 0.2), strict=True):
            assert deadline <= seconds < deadline + 0.5
        await until(lambda: len(sessions[0].cancelled) == 4)
        assert await client.ask(echo(1), deadline=5.0)
        with pytest.raises(Unavailable):
            await client.ask(echo(1), deadline=-1.0)


@on_both_loops
async def test_an_answer_after_the_deadline_is_dropped() -> None:
    async with (
        server() as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        with pytest.raises(Unavailable):
            await client.ask(later(0.05, 1), deadline=0.03)
        replies = [await client.ask(echo(1, n), deadline=5.0) for n in range(20)]
        assert [int(decode(r.result.tensors["x"])[0]) for r in replies] == list(range(20))
        await asyncio.sleep(0.05)
        assert client.connected


@on_both_loops
async def test_cancellation_tells_the_server() -> None:
    async with (
        server() as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        for wait in (0.0, 0.02):
            task = asyncio.create_task(client.ask(HOLD))
            await asyncio.sleep(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.ask(HOLD)
        await until(lambda: len(sessions[0].cancelled) == 2)
        assert await client.ask(echo(1), deadline=5.0)


@on_both_loops
async def test_a_drop_fails_everything_at_once() -> None:
    async with (
        server() as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        asked = [asyncio.create_task(client.ask(HOLD, deadline=60.0)) for _ in range(20)]
        await until(lambda: sessions[0].queries)
        began = time.monotonic()
        next(iter(listener.channels)).abort("power cut")
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - began < 1.0
        assert all(isinstance(r, Unavailable) for r in results)


@on_both_loops
async def test_fetch() -> None:
    async with (
        server() as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        whole, reply = await asyncio.gather(client.fetch("file", 5.0), client.ask(echo(1), 5.0))
        assert whole == FILE
        assert reply.bytes_down
        with pytest.raises(Refused, match="unknown"):
            await client.fetch("else")
        with pytest.raises(ProtocolError, match="512000 bytes, 100000 allowed"):
            await client.fetch("file", limit=100_000)
        assert await client.fetch("file", 5.0) == FILE


@on_both_loops
async def test_fetch_checks_what_it_gets() -> None:
    class Liar(Session):
        def fetched(self, channel: Channel, fetch: Fetch) -> None:
            channel.stream(fetch.id, pieces(0, digest="00"))

    class Slow(Session):
        def fetched(self, channel: Channel, fetch: Fetch) -> None:
            channel.send(next(pieces(0)), id=fetch.id)

    class Short(Session):
        def fetched(self, channel: Channel, fetch: Fetch) -> None:
            channel.stream(fetch.id, iter([next(pieces(0))]))

    async with (
        server(Liar) as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        with pytest.raises(ProtocolError, match="digest"):
            await client.fetch("file", 5.0)
    async with (
        server(Slow) as (listener, sessions),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        with pytest.raises(Unavailable, match="no answer within"):
            await client.fetch("file", 0.05)
        await until(lambda: sessions[0].cancelled)
    async with (
        server(Short) as (listener, _),
        Client.connect("127.0.0.1", listener.port) as client,
    ):
        with pytest.raises(Refused, match="ended early"):
            await client.fetch("file", 5.0)


@on_both_loops
async def test_entering_fails_where_there_is_nobody() -> None:
    async with server() as (listener, _):
        port = listener.port
    with pytest.raises(Unavailable, match=r"not connected to 127\.0\.0\.1:\d+ within 0\.2 s: Conn"):
        async with Client.connect("127.0.0.1", port, wait=0.2):
            pass
    async with Client.connect("127.0.0.1", port, wait=0) as client:
        assert not client.connected
        with pytest.raises(Unavailable, match="not connected"):
            await client.ask(echo(1), deadline=5.0)


@on_both_loops
async def test_hello_says_what_was_asked_for() -> None:
    class Strict(Session):
        token = "right"

    async with server(Strict) as (listener, _):
        async with Client.connect(
            "127.0.0.1", listener.port, token="right", agent="cam", strategies=("raw", "amot")
        ) as client:
            (channel,) = listener.channels
            assert channel.hello is not None
            assert channel.hello.agent == "cam"
            assert channel.hello.strategies == ("raw", "amot")
            assert client.connected
        with pytest.raises(Refused, match="wrong token"):
            async with Client.connect("127.0.0.1", listener.port, token="wrong"):
                pass
