"""The client through restarts, cuts and refusals: it comes back, says so once, leaks nothing."""

# ruff: noqa: SIM117 - what surrounds a client is easier to read nested

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import tracemalloc

import pytest

from common.backoff import Backoff
from common.channel import serve
from common.client import Client
from common.errors import Refused, Unavailable
from common.messages import Bye
from common.protocol import Timing
from tests.proxy import Proxy
from tests.test_client import HOLD, echo, later
from tests.wire_server import FILE, Session, on_both_loops, server, until


def quick() -> Backoff:
    return Backoff(first=0.01, cap=0.05)


class Lines(logging.Handler):
    """Keeps what "offboard.client" logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Lines:
        logger = logging.getLogger("offboard.client")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("offboard.client").removeHandler(self)


def test_backoff_grows_with_full_jitter_up_to_its_cap() -> None:
    backoff = Backoff(first=1.0, cap=60.0, random=random.Random(1))
    draws = [[backoff.failed() for _ in range(12)] for _ in range(300) if not backoff.succeeded()]
    highest = [max(column) for column in zip(*draws, strict=True)]
    lowest = [min(column) for column in zip(*draws, strict=True)]
    for n, (high, low) in enumerate(zip(highest, lowest, strict=True)):
        top = min(60.0, 2.0**n)
        assert 0.9 * top < high <= top
        assert low < 0.1 * top
    assert all(30.0 <= backoff.refused() <= 60.0 for _ in range(100))
    for _ in range(5000):
        assert backoff.failed() <= 60.0


@on_both_loops
async def test_a_restart_is_survived_with_one_line_per_change() -> None:
    changes: list[tuple[bool, str]] = []
    with Lines() as log:
        async with server() as (listener, _), Proxy.to(listener.port) as proxy:
            async with Client.connect(
                "127.0.0.1", proxy.port, backoff=quick(),
                on_state=lambda up, why: changes.append((up, why)),
            ) as client:  # fmt: skip
                for _ in range(3):
                    assert await client.ask(echo(1), deadline=5.0)
                    await proxy.stop()
                    await until(lambda: not client.connected)
                    await asyncio.sleep(0.15)  # several attempts fail
                    with pytest.raises(Unavailable):
                        await client.ask(echo(1), deadline=5.0)
                    await proxy.start()
                    await client.wait_connected(5.0)
    assert [up for up, _ in changes] == [True, False] * 3 + [True]
    assert len(log.lines) == 7
    assert log.lines[0].startswith("connected to 127.0.0.1:")
    assert "trying on" in log.lines[1]


@on_both_loops
async def test_a_server_that_comes_late() -> None:
    async with server() as (listener, _):
        port = listener.port
    async with Client.connect("127.0.0.1", port, wait=0, backoff=quick()) as client:
        await asyncio.sleep(0.1)
        assert not client.connected
        again = await serve("127.0.0.1", port, Session)
        await client.wait_connected(5.0)
        assert await client.ask(echo(1), deadline=5.0)
        await client.close()
        await again.close("over", grace=0.5)


@on_both_loops
async def test_drain_finishes_what_is_out_then_comes_back() -> None:
    async with (
        server() as (listener, sessions),
        Client.connect("127.0.0.1", listener.port, backoff=quick()) as client,
    ):
        task = asyncio.create_task(client.ask(later(0.5, 3), deadline=15.0))
        await until(lambda: sessions[0].queries)
        for channel in listener.channels:
            channel.drain("restart")
        await until(lambda: client._channel is not None and client._channel.draining)
        with pytest.raises(Unavailable, match="going away"):
            await client.ask(echo(1), deadline=5.0)
        assert (await task).bytes_down
        await until(lambda: len(sessions) == 2 and client.connected)
        assert await client.ask(echo(1), deadline=5.0)


@on_both_loops
async def test_no_fast_retry_after_a_refusal() -> None:
    class Strict(Session):
        token = "right"

    with Lines() as log:
        async with server(Strict) as (listener, sessions):
            async with Client.connect(
                "127.0.0.1", listener.port, token="wrong", wait=0, backoff=Backoff(first=0.01)
            ) as client:
                with pytest.raises(Refused, match="wrong token"):
                    await client.wait_connected(5.0)
                await asyncio.sleep(0.2)
                assert len(sessions) == 1
    assert len(log.lines) == 1
    assert log.lines[0].startswith("refused by 127.0.0.1:")


@on_both_loops
async def test_a_fetch_goes_on_after_a_cut() -> None:
    offsets: list[int] = []

    class Flaky(Session):
        def fetched(self, channel, fetch) -> None:  # type: ignore[no-untyped-def]
            offsets.append(fetch.offset)
            super().fetched(channel, fetch)
            if len(offsets) < 3:
                channel._streams.clear()
                asyncio.get_running_loop().call_later(0.05, channel.close, Bye("done", "oops"))

    async with (
        server(Flaky) as (listener, _),
        Client.connect("127.0.0.1", listener.port, backoff=quick()) as client,
    ):
        assert await client.fetch("file", 10.0) == FILE
    assert len(offsets) <= 3
    assert offsets[0] == 0
    assert offsets == sorted(offsets)


@on_both_loops
async def test_adversity_mid_request() -> None:
    async with (
        server() as (listener, _),
        Proxy.to(listener.port) as proxy,
        Client.connect(
            "127.0.0.1", proxy.port, backoff=quick(), timing=Timing(ping=0.2, dead=0.2)
        ) as client,
    ):
        proxy.cut_after(20_000)
        with pytest.raises(Unavailable):
            await client.ask(echo(50_000), deadline=5.0)
        await client.wait_connected(5.0)
        task = asyncio.create_task(client.ask(HOLD, deadline=5.0))
        await asyncio.sleep(0.05)
        proxy.half_close()
        with pytest.raises(Unavailable):
            await task
        await client.wait_connected(5.0)
        proxy.stall()
        with pytest.raises(Unavailable, match="no answer within"):
            await client.ask(echo(1), deadline=0.1)
        with pytest.raises(Unavailable, match="nothing heard"):
            await client.ask(echo(1), deadline=5.0)  # the link is found dead before the deadline
        proxy.resume()
        await client.wait_connected(5.0)
        assert await client.ask(echo(1), deadline=5.0)


@on_both_loops
async def test_a_soak_of_reconnects_leaks_nothing() -> None:
    logging.getLogger("offboard.client").setLevel(logging.CRITICAL)  # pytest keeps every line

    def fds() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async with server() as (listener, sessions), Proxy.to(listener.port) as proxy:
        async with Client.connect(
            "127.0.0.1", proxy.port, backoff=Backoff(first=0.001, cap=0.002)
        ) as client:
            held: list[tuple[int, int, int]] = []
            for n in range(90):
                await client.wait_connected(5.0)
                assert await client.ask(echo(20_000), deadline=5.0)
                pending = asyncio.create_task(client.ask(HOLD, deadline=5.0))
                await asyncio.sleep(0)
                if n % 3:
                    proxy.cut()
                else:
                    for channel in listener.channels:
                        channel.close(Bye("done", "soak"))
                with pytest.raises(Unavailable):
                    await pending
                sessions.clear()
                if n == 30:
                    tracemalloc.start()
                if n in (45, 89):
                    gc.collect()
                    held.append(
                        (fds(), len(asyncio.all_tasks()), tracemalloc.get_traced_memory()[0])
                    )
            tracemalloc.stop()
    (fds_then, tasks_then, bytes_then), (fds_now, tasks_now, bytes_now) = held
    assert fds_now <= fds_then + 2
    assert tasks_now <= tasks_then + 2
    assert bytes_now < bytes_then + 30_000
