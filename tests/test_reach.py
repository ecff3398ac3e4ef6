"""Getting through a dark link, and the connection that stalls on one."""

# ruff: noqa: SIM117 - what surrounds a client is easier to read nested

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from common import reach as reaching
from common.channel import connect
from common.client import Client
from common.connection import Channel
from common.errors import Refused, Silent, Unavailable
from common.messages import Hello
from common.reach import reach
from common.tcpinfo import TcpInfo
from common.wire import VERSIONS
from tests.proxy import Proxy
from tests.test_client import HOLD, echo
from tests.test_client_reconnect import Lines, quick
from tests.wire_server import on_both_loops, server, until


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "AGAIN", 0.05)
    monkeypatch.setattr(reaching, "LOOK", 0.05)


def ignore(_: Silent) -> None:
    pass


class Attempts:
    """Attempts that end as `ends` says: an error, a channel, or (None) never."""

    def __init__(self, *ends: Exception | str | None, opens: bool = False) -> None:
        self.ends = list(ends)
        self.opens = opens
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, on_open: Callable[[], None]) -> Channel:
        self.begun += 1
        if self.opens:
            on_open()
        end = self.ends.pop(0) if self.ends else None
        if isinstance(end, Exception):
            raise end
        if end is not None:
            return cast(Channel, end)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("not reached")


@on_both_loops
async def test_a_silent_attempt_is_joined_by_others_and_the_first_wins() -> None:
    attempts = Attempts(None, None, "channel")
    assert await reach(attempts, ignore) == "channel"
    assert (attempts.begun, attempts.cancelled) == (3, 2)


@on_both_loops
async def test_silence_is_told_and_tried_again_at_the_same_pace() -> None:
    told: list[Silent] = []
    loop = asyncio.get_running_loop()
    attempts = Attempts(*[Silent("no route")] * 4, "channel")
    began = loop.time()
    assert await reach(attempts, told.append) == "channel"
    assert len(told) == 4
    assert loop.time() - began >= 4 * 0.05 / 2


@on_both_loops
async def test_a_server_that_is_there_is_left_to_the_back_off() -> None:
    for error in (Refused("refused", "wrong token"), Unavailable("nobody listens")):
        with pytest.raises(type(error)):
            await reach(Attempts(None, error), ignore)


@on_both_loops
async def test_an_open_socket_is_waited_for() -> None:
    """A slow welcome is no silence: no second connection to a busy server."""
    attempts = Attempts(opens=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reach(attempts, ignore)
    assert (attempts.begun, attempts.cancelled) == (1, 1)


@on_both_loops
async def test_it_ends_when_it_is_not_needed_any_more() -> None:
    attempts = Attempts()
    assert await reach(attempts, ignore, lambda: attempts.begun < 3) is None
    assert attempts.cancelled == 3


async def hears(port: int) -> Channel:
    class Deaf:
        def on_message(self, channel: Channel, message: Any) -> None: ...
        def on_closed(self, channel: Channel, reason: str) -> None: ...

    return await connect("127.0.0.1", port, Hello(VERSIONS, "test", (), 1 << 20), Deaf())


@on_both_loops
async def test_the_kernel_tells_of_a_channel() -> None:
    async with server() as (listener, _):
        channel = await hears(listener.port)
        tcp = channel.tcp
        assert tcp is not None
        assert tcp.repeats == 0
        assert tcp.rtt is not None
        channel.abort("done")
        await channel.gone
        assert channel.tcp is None


@on_both_loops
async def test_a_stalled_connection_is_left_for_one_that_gets_through() -> None:
    changes: list[bool] = []
    async with server() as (listener, sessions), Proxy.to(listener.port) as proxy:
        async with Client.connect(
            "127.0.0.1", proxy.port, backoff=quick(), on_state=lambda up, _: changes.append(up)
        ) as client:
            first = client._channel
            assert first is not None
            assert client.rtt is not None
            waiting = asyncio.create_task(client.ask(HOLD, deadline=20.0))
            await until(lambda: sessions[0].queries)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    Channel,
                    "tcp",
                    property(lambda self: TcpInfo(2 if self is first else 0, 1, 0.01)),
                )
                with pytest.raises(Unavailable, match="dark"):
                    await waiting
                await client.wait_connected(5.0)
            assert client._channel is not first
            assert await client.ask(echo(1), deadline=5.0)
    assert changes == [True, False, True]


@on_both_loops
async def test_a_stalled_connection_that_recovers_is_kept() -> None:
    with Lines() as log:
        async with server() as (listener, _), Proxy.to(listener.port) as proxy:
            async with Client.connect("127.0.0.1", proxy.port, backoff=quick()) as client:
                first = client._channel
                proxy.stall()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(Channel, "tcp", property(lambda _: TcpInfo(5, 1, 0.01)))
                    await until(lambda: proxy.connections >= 2)
                proxy.resume()
                assert await client.ask(echo(1), deadline=5.0)
                await asyncio.sleep(0.2)
                assert client._channel is first
    assert len(log.lines) == 1


@on_both_loops
async def test_silence_with_a_query_out_is_asked_about() -> None:
    async with server() as (listener, sessions):
        async with Client.connect("127.0.0.1", listener.port, backoff=quick()) as client:
            channel = client._channel
            assert channel is not None
            waiting = asyncio.create_task(client.ask(HOLD, deadline=20.0))
            await until(lambda: sessions[0].queries)
            heard = channel.bytes_in
            await until(lambda: channel.bytes_in > heard)  # a Pong: the answer is held back
            waiting.cancel()
