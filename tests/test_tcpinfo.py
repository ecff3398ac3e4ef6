"""What the kernel says of a connection."""

import socket
import struct

import pytest

from common import tcpinfo
from common.tcpinfo import TcpInfo, parse


def packed(repeats: int, unacked: int, micros: int) -> bytes:
    data = bytearray(200)
    data[2] = repeats
    struct.pack_into("=I", data, 24, unacked)
    struct.pack_into("=I", data, 148, micros)
    return bytes(data)


def test_fields_lie_where_the_kernel_puts_them() -> None:
    assert parse(packed(3, 7, 42_200)) == TcpInfo(3, 7, 0.0422)


@pytest.mark.parametrize("micros", [0, 0xFFFFFFFF])
def test_a_round_trip_never_seen_is_none(micros: int) -> None:
    assert parse(packed(0, 0, micros)) == TcpInfo(0, 0, None)


def test_an_old_kernel_says_too_little() -> None:
    assert parse(bytes(104)) is None


@pytest.mark.skipif(tcpinfo.OPTION is None, reason="this kernel has no TCP_INFO")
def test_a_real_connection() -> None:
    assert tcpinfo.OPTION is not None
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as peer,
    ):
        for _ in range(3):
            client.sendall(b"?")
            assert peer.recv(1) == b"?"
            peer.sendall(b"!")
            assert client.recv(1) == b"!"
        found = parse(client.getsockopt(socket.IPPROTO_TCP, tcpinfo.OPTION, tcpinfo.SIZE))
    assert found is not None
    assert found.repeats == 0
    assert found.rtt is not None
    assert 0.0 < found.rtt < 1.0
