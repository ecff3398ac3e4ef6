"""The front door: addresses, exposure, limits, time to say Hello, draining."""

from __future__ import annotations

import asyncio
import socket

import pytest

from common.channel import connect
from common.errors import ConfigError, Unavailable
from common.messages import Hello
from common.protocol import Timing
from common.wire import DEFAULT, VERSIONS
from server.listener import Listener, check_exposure, parse_address, show_address
from server.service import SessionLimits
from tests.serving import WAIT, Scripted, running, soon
from tests.test_session import Peer, join

HELLO = Hello(VERSIONS, "a test", (), DEFAULT.packet)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_read_and_shown(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert show_address(*address) == text


@pytest.mark.parametrize("text", ["", "host", ":7070", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_the_loopback_is_open(host: str) -> None:
    check_exposure(host, token="", insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_the_network_needs_a_secret_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match=r"OFFBOARD_TOKEN.*--insecure"):
        check_exposure(host, token="", insecure=False)
    check_exposure(host, token="secret", insecure=False)
    check_exposure(host, token="", insecure=True)


def test_a_port_in_use_is_named() -> None:
    async def main() -> None:
        async with running({"scripted": Scripted()}) as server:
            with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}.*in use"):
                await Listener.open(server.service, "127.0.0.1", server.port)

    asyncio.run(main())


def test_no_more_devices_than_allowed_and_a_place_becomes_free() -> None:
    async def main() -> None:
        limits = SessionLimits(sessions=1)
        async with running({"scripted": Scripted()}, limits=limits) as server:
            first = await join(server)
            with pytest.raises(Unavailable, match="connected already"):
                await connect("127.0.0.1", server.port, HELLO, Peer())
            first.channel.close()
            await soon(lambda: not server.service.sessions)
            second = await join(server)
            second.channel.close()
            await asyncio.wait([first.channel.gone, second.channel.gone], timeout=WAIT)

    asyncio.run(main())


def test_strangers_are_few_and_have_little_time() -> None:
    async def main() -> None:
        limits = SessionLimits(strangers=2)
        async with running({"scripted": Scripted()}, limits=limits) as server:
            door = await Listener.open(server.service, "127.0.0.1", 0, timing=Timing(hello=0.8))
            silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(2)]
            await soon(lambda: len(server.service.strangers) == 2)
            with pytest.raises(Unavailable, match="not authenticated"):
                await connect("127.0.0.1", door.port, HELLO, Peer())
            await soon(lambda: not server.service.strangers)
            peer = Peer()
            channel = await connect("127.0.0.1", door.port, HELLO, peer)
            assert (len(server.service.strangers), len(server.service.sessions)) == (0, 1)
            channel.close()
            await asyncio.wait([channel.gone], timeout=WAIT)
            for sock in silent:
                sock.close()
            await door.close("done", grace=1.0)

    asyncio.run(main())


def test_a_drained_listener_takes_nobody() -> None:
    async def main() -> None:
        async with running({"scripted": Scripted()}) as server:
            peer, port = await join(server), server.port
            await server.listener.close("restarting", grace=WAIT)
            assert server.service.draining
            await soon(lambda: bool(peer.closed))
            with pytest.raises(Unavailable):
                await connect("127.0.0.1", port, HELLO, Peer())

    asyncio.run(main())
