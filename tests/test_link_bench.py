"""The userspace link: the queue's arithmetic, and real sockets through it."""

import contextlib
import math
import random
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bench.link import HEADERS, SEGMENT, Direction, Shape, running
from bench.traces import Trace
from common.errors import ConfigError

BITS = (SEGMENT + HEADERS) * 8


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that says back all it hears, one connection after another."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def work() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(10)
                try:
                    while data := peer.recv(65536):
                        peer.sendall(data)
                except OSError:
                    continue

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(65536)):
        data += more
    return data


def test_segments_queue_behind_each_other() -> None:
    direction = Direction(Trace.constant(BITS / 1e6), 0.25)  # one segment a second
    assert direction.arrival(0.0, SEGMENT) == pytest.approx((1.0, 1.25))
    assert direction.arrival(0.5, SEGMENT) == pytest.approx((2.0, 2.25))
    assert direction.arrival(5.0, SEGMENT) == pytest.approx((6.0, 6.25))


def test_latency_is_no_bandwidth() -> None:
    """Half a second of delay, and ten segments still leave in ten times one segment's time."""
    direction = Direction(Trace.constant(BITS / 1e6 * 1000), 0.5)
    arrivals = [direction.arrival(0.0, SEGMENT)[1] for _ in range(10)]
    assert arrivals[-1] == pytest.approx(0.51)


def test_a_zero_rate_waits_for_the_next_step() -> None:
    direction = Direction(Trace((0.0, 1.0), (0.0, BITS / 1e6), 2.0), 0.0)
    assert direction.arrival(0.2, SEGMENT)[1] == pytest.approx(2.0)
    assert direction.arrival(0.2, SEGMENT)[1] == pytest.approx(4.0)


def test_jitter_varies_the_delay_and_keeps_the_order() -> None:
    direction = Direction(Trace.constant(math.inf), 0.02, 0.01, random.Random(1))
    arrivals = [direction.arrival(i / 100, 100)[1] - i / 100 for i in range(200)]
    assert max(arrivals) > 0.025
    assert min(arrivals) < 0.015
    assert all(a + i / 100 <= b + (i + 1) / 100 for i, (a, b) in enumerate(pairwise(arrivals)))


@pytest.mark.parametrize("wrong", [{"rate": -1}, {"rtt": -1}, {"rtt": 2, "jitter": 2}])
def test_what_is_no_link_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Shape(**wrong)  # type: ignore[arg-type]


def test_bytes_come_back_whole_and_in_order(echo: str) -> None:
    sent = random.Random(0).randbytes(1 << 20)
    with running(echo, Shape(rate=400, rtt=2, jitter=1)) as address, connected(address) as client:
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        assert received(client, len(sent)) == sent
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""  # the end travels, too


def test_connections_share_one_queue() -> None:
    """Two directions of arrivals in one `Direction` are what two connections see."""
    direction = Direction(Trace.constant(BITS / 1e6), 0.0)
    first = [direction.arrival(0.0, SEGMENT)[1] for _ in range(3)]
    second = direction.arrival(0.0, SEGMENT)[1]
    assert (first[-1], second) == pytest.approx((3.0, 4.0))


def test_nothing_passes_a_dead_link(echo: str) -> None:
    with running(echo, Shape(rate=0)) as address, connected(address) as client:
        client.sendall(b"hello")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_full_queue_is_felt_by_the_sender(echo: str) -> None:
    with running(echo, Shape(rate=0)) as address, connected(address) as client:
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 << 20))


def test_without_a_server_the_connection_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(f"127.0.0.1:{port}", Shape()) as address, connected(address) as client:
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_a_server_that_goes_takes_the_connection_along(echo: str) -> None:
    with running(echo, Shape(rtt=1)) as address, connected(address) as client:
        client.sendall(b"hello")
        assert received(client, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
