"""Channels over real sockets: handshake, violations, drain, backpressure, silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import numpy as np
import pytest

from common.channel import Channel, connect, serve
from common.codec import decode, encode
from common.errors import Refused, Unavailable
from common.messages import (
    Bye,
    Cancel,
    Fetch,
    Hello,
    Message,
    Ping,
    Query,
    Refusal,
    Result,
    Welcome,
)
from common.parser import Parser
from common.protocol import Timing
from common.wire import DEFAULT
from tests.packets import EXAMPLES, packet
from tests.proxy import Proxy
from tests.test_wire_parser import feed
from tests.wire_server import Session, on_both_loops, server, until

HELLO = Hello((1,), "test", ("raw",), 64 << 20)


class Device:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.sizes: list[int] = []
        self.closed: list[str] = []

    def on_message(self, channel: Channel, message: Message) -> None:
        self.heard.append(message)
        self.sizes.append(channel.received)

    def on_closed(self, channel: Channel, reason: str) -> None:
        self.closed.append(reason)


async def raw(port: int, *said: bytes) -> bytes:
    """What a server says to bytes, up to the end of its stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for data in said:
        writer.write(data)
    answer = await reader.read(-1)
    writer.close()
    return answer


def said(data: bytes) -> list[Message]:
    """The messages in `data`."""
    return feed(Parser(DEFAULT), data)


def echo(size: int) -> Query:
    pixels = np.arange(size, dtype=np.uint8)
    return Query("raw", "echo", tensors={"x": encode(pixels)})


@on_both_loops
async def test_a_query_and_its_answer() -> None:
    async with server() as (listener, sessions):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        assert channel.welcome is not None
        assert channel.welcome.profile == "p"
        for id, size in enumerate([0, 1, 1000, 30_000, 45_000, 300_000, 3_000_000], 1):
            sent = channel.send(echo(size), id=id, ms_left=77)
            await until(lambda id=id: len(device.heard) == id)  # type: ignore[misc]
            result = device.heard[-1]
            assert isinstance(result, Result)
            assert result.id == id
            assert np.array_equal(decode(result.tensors["x"]), np.arange(size, dtype=np.uint8))
            assert sessions[0].queries[-1].ms_left == 77
            assert sent - size < 100
            assert device.sizes[-1] - size < 150
        assert channel.bytes_in > 3_000_000
        channel.close()
        await channel.gone
        await until(lambda: sessions[0].closed)
        assert sessions[0].closed == ["peer said done: "]
        assert device.closed == ["closed here"]
        assert channel.send(echo(1), id=9) == 0


@on_both_loops
async def test_many_large_packets_in_flight_both_ways() -> None:
    async with server() as (listener, _):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        queries = [echo(1_000_000 + n) for n in range(8)]
        for id, query in enumerate(queries, 1):
            channel.send(query, id=id)
        await until(lambda: len(device.heard) == 8)
        for message in device.heard:
            assert isinstance(message, Result)
            size = queries[message.id - 1].tensors["x"].shape[0]
            assert np.array_equal(decode(message.tensors["x"]), np.arange(size, dtype=np.uint8))
        channel.abort("enough")
        await channel.gone


@on_both_loops
async def test_a_violation_closes_only_that_connection_with_a_reason() -> None:
    hello = packet(HELLO)
    query = packet(Query("raw", "hold", id=1))
    cases: list[tuple[tuple[bytes, ...], str]] = [
        ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",), "not an Offboard packet"),
        ((query,), "not allowed before the welcome"),
        ((hello, hello), "not allowed while open"),
        ((hello, packet(EXAMPLES["result"])), "Result is not allowed"),
        ((hello, query, query), "id 1 is outstanding already"),
        ((hello, *(packet(Query("raw", "hold", id=n)) for n in range(1, 11))), "8 credits"),
        ((hello, query[:-1] + b"\xff"), "tensors are not a map"),
        ((packet(EXAMPLES["query"]),), "body of"),
    ]
    async with server() as (listener, sessions):
        device = Device()
        good = await connect("127.0.0.1", listener.port, HELLO, device)
        for sent, reason in cases:
            bye = said(await raw(listener.port, *sent))[-1]
            assert isinstance(bye, Bye)
            assert bye.code == "protocol"
            assert reason in bye.reason
            assert sessions[-1].closed == [bye.reason]
        good.send(echo(10), id=1)
        await until(lambda: device.heard)
        good.close()
        await good.gone


@on_both_loops
async def test_a_bye_is_readable_behind_a_flood() -> None:
    async with server() as (listener, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"x" * 3_000_000)
        bye = said(await reader.read(-1))[-1]
        assert bye == Bye("protocol", "not an Offboard packet")
        writer.close()


@on_both_loops
async def test_refusals_at_the_door() -> None:
    class Strict(Session):
        token = "right"

    class Full(Session):
        def __init__(self, channel: Channel) -> None:
            raise Refused("refused", "full")

    async with server(Strict) as (listener, _):
        with pytest.raises(Refused, match="wrong token"):
            await connect("127.0.0.1", listener.port, HELLO, Device())
        other = Hello((7,), "future", (), 1 << 20, "right")
        with pytest.raises(Refused, match="no common version"):
            await connect("127.0.0.1", listener.port, other, Device())
    async with server(Full) as (listener, _):
        with pytest.raises(Refused, match="full"):
            await connect("127.0.0.1", listener.port, HELLO, Device())


@on_both_loops
async def test_nobody_there_or_nobody_speaking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(Unavailable, match="no welcome within"):
            await connect("127.0.0.1", port, HELLO, Device(), timeout=0.1)
    with pytest.raises(Unavailable, match="Connection refused"):
        await connect("127.0.0.1", port, HELLO, Device(), timeout=5.0)


@on_both_loops
async def test_a_stranger_who_says_nothing_is_shown_out() -> None:
    async with server(timing=Timing(hello=0.1, linger=0.2)) as (listener, sessions):
        assert said(await raw(listener.port)) == [Bye("protocol", "no handshake within 0.1 s")]
        assert said(await raw(listener.port, packet(HELLO)[:9]))[-1].__class__ is Bye
        await until(lambda: not listener.channels)
        assert len(sessions) == 2


@on_both_loops
async def test_a_cut_packet_is_not_garbage() -> None:
    async with server() as (listener, sessions):
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(packet(HELLO) + packet(Query("raw", "hold", id=1))[:-1])
        await until(lambda: sessions and sessions[0].closed == [] and listener.channels)
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: sessions[0].closed)
        assert sessions[0].closed == ["cut in the middle of a packet"]


@on_both_loops
async def test_drain_answers_what_is_out_and_refuses_the_rest() -> None:
    async with server() as (listener, sessions):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        channel.send(Query("raw", "later", {"seconds": 0.15}), id=1)
        await until(lambda: sessions[0].queries)
        for serving in listener.channels:
            serving.drain("restart")
        channel.send(echo(1), id=2)  # it crosses the Bye
        await until(lambda: device.closed)
        assert [type(m) for m in device.heard] == [Refusal, Result]
        refusal = device.heard[0]
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.retryable) == ("draining", True)
        assert device.closed == ["drained"]
        assert channel.bye == Bye("drain", "restart")


@on_both_loops
async def test_drain_is_bounded() -> None:
    async with server() as (listener, sessions):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        channel.send(Query("raw", "hold"), id=1)
        await until(lambda: sessions[0].queries)
        await listener.close("restart", grace=0.1)
        await until(lambda: device.closed)
        assert sessions[0].closed == ["not drained in time"]


@on_both_loops
async def test_cancel_comes_up_only_for_what_is_out() -> None:
    async with server() as (listener, sessions):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        channel.send(Cancel(id=5))
        channel.send(Query("raw", "hold"), id=1)
        channel.send(Cancel(id=1))
        channel.send(Cancel(id=1))
        await until(lambda: device.heard)
        assert sessions[0].cancelled == [1]
        assert channel.credits_left == 8
        channel.close()
        await channel.gone


@on_both_loops
async def test_a_bug_in_the_server_closes_one_connection() -> None:
    async with server() as (listener, _):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        channel.send(Query("raw", "crash"), id=1)
        await until(lambda: device.closed)
        assert device.closed == ["peer said done: internal error"]
        await connect("127.0.0.1", listener.port, HELLO, again := Device())
        assert not again.closed


@on_both_loops
async def test_an_idle_peer_is_pinged_and_a_dead_one_dropped() -> None:
    timing = Timing(ping=0.1, dead=0.5, linger=0.1)
    async with server(timing=timing) as (listener, sessions), Proxy.to(listener.port) as proxy:
        device = Device()
        channel = await connect("127.0.0.1", proxy.port, HELLO, device)
        await asyncio.sleep(0.6)
        assert not device.closed
        assert channel.bytes_out > 100  # pongs
        assert not [m for m in device.heard if isinstance(m, Ping)]
        proxy.stall()
        await until(lambda: sessions[0].closed)
        assert "nothing heard for" in sessions[0].closed[0]


@on_both_loops
async def test_a_busy_link_is_never_pinged() -> None:
    async with server(timing=Timing(ping=0.6, dead=0.6)) as (listener, _):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        for id in range(1, 41):
            channel.send(echo(1), id=id)
            await asyncio.sleep(0.02)
        results = sum(device.sizes)
        assert channel.bytes_in - results < 150  # the welcome, and no ping
        channel.close()
        await channel.gone


@on_both_loops
async def test_a_peer_that_never_reads_stops_being_read() -> None:
    async with server() as (listener, sessions):
        loop = asyncio.get_running_loop()
        sock = socket.create_connection(("127.0.0.1", listener.port))
        sock.setblocking(False)
        await loop.sock_sendall(sock, packet(HELLO))
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                for sent in range(1, 1000):
                    query = Query("raw", "echo", {}, echo(1 << 20).tensors, id=sent)
                    await loop.sock_sendall(sock, packet(query))
        (channel,) = listener.channels
        assert not channel.writable
        assert sent < 100
        assert len(sessions[0].queries) < 100
        sock.close()
        await until(lambda: not listener.channels)


@on_both_loops
async def test_a_fetch_is_streamed_and_can_be_cancelled() -> None:
    async with server() as (listener, sessions):
        device = Device()
        channel = await connect("127.0.0.1", listener.port, HELLO, device)
        channel.send(Fetch("file"), id=1)
        await until(lambda: 1 not in channel.outstanding)
        assert sum(m.tensors["data"].shape[0] for m in device.heard) == 512_000  # type: ignore[union-attr]
        channel.send(Fetch("file"), id=2)
        channel.send(Cancel(id=2))
        await until(lambda: 2 not in channel.outstanding)
        assert not sessions[0].cancelled
        channel.close()
        await channel.gone


@on_both_loops
async def test_what_the_peer_may_not_be_sent() -> None:
    async with server() as (listener, _):
        channel = await connect("127.0.0.1", listener.port, HELLO, Device())
        with pytest.raises(ValueError, match="the peer takes 67108864"):
            channel.send(echo((64 << 20) + 1), id=1)
        assert channel.credits_left == 8
        channel.close()
        await channel.gone


@on_both_loops
async def test_half_closed_and_reset_connections_end() -> None:
    async with server() as (listener, sessions), Proxy.to(listener.port) as proxy:
        for way in (proxy.half_close, proxy.cut):
            device = Device()
            await connect("127.0.0.1", proxy.port, HELLO, device)
            way()
            await until(lambda device=device: device.closed)  # type: ignore[misc]
        await until(lambda: not listener.channels)
        assert all(s.closed for s in sessions)


@on_both_loops
async def test_no_delay_is_on() -> None:
    seen: list[int] = []

    class Look(Session):
        def __init__(self, channel: Channel) -> None:
            super().__init__(channel)
            assert channel._transport is not None
            sock = channel._transport.get_extra_info("socket")
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with server(Look) as (listener, _):
        await raw(listener.port, b"?" * 20)
    assert seen == [1]


@on_both_loops
async def test_connections_leave_nothing_behind() -> None:
    fds: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731, PTH208
    async with server() as (listener, _):
        before = 0
        for n in range(60):
            channel = await connect("127.0.0.1", listener.port, HELLO, Device())
            channel.close() if n % 2 else channel.abort("gone")
            await channel.gone
            await raw(listener.port, b"nonsense that is long enough")
            await until(lambda: not listener.channels)
            if n == 10:
                before = fds()
        assert fds() <= before


@on_both_loops
async def test_a_port_in_use_is_an_error() -> None:
    async with server() as (listener, _):
        with pytest.raises(OSError, match="in use"):
            await serve("127.0.0.1", listener.port, Session)


@on_both_loops
async def test_credits_and_limits_are_those_of_the_welcome() -> None:
    async with server() as (listener, _):
        (hello, welcome) = (packet(HELLO), Welcome)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(hello)
        first = said(await reader.read(1000))[0]
        assert isinstance(first, welcome)
        assert first.credits == 8
        writer.close()
        await until(lambda: not listener.channels)
