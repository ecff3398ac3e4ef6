"""The blocking client, against a server on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.backoff import Backoff
from common.blocking import BlockingClient
from common.channel import Listener, new_event_loop, serve
from common.codec import decode
from common.errors import ProtocolError, Refused, Unavailable
from common.messages import Fetch
from common.protocol import Timing
from tests.test_client import HOLD, echo, later
from tests.wire_server import FILE, Session, pieces


class Background:
    """A server on its own thread and loop."""

    def __init__(self, kind: type[Session] = Session, port: int = 0, ping: float = 10.0) -> None:
        self.sessions: list[Session] = []
        self.loop = new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        def attach(channel: Any) -> Session:
            self.sessions.append(kind(channel))
            return self.sessions[-1]

        timing = Timing(ping=ping, dead=ping)
        self.listener: Listener = self.call(serve("127.0.0.1", port, attach, timing=timing))
        self.port = self.listener.port

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def stop(self) -> None:
        self.call(self.listener.close("over", grace=0.2))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*args: Any, **options: Any) -> Background:
        started.append(Background(*args, **options))
        return started[-1]

    yield start
    for each in started:
        if each.thread.is_alive():
            each.stop()


def test_ask_and_fetch(background: Callable[..., Background]) -> None:
    served = background()
    with BlockingClient("127.0.0.1", served.port) as client:
        assert client.welcome is not None
        for size in (0, 10, 50_000, 3_000_000):
            reply = client.ask(echo(size, 7), deadline=5.0)
            assert (decode(reply.result.tensors["x"]) == 7).all()
            assert 0 < reply.bytes_up - size < 100
            assert 0 < reply.bytes_down - size < 150
        assert client.fetch("file", deadline=5.0) == FILE
        with pytest.raises(Refused, match="busy"):
            client.ask(HOLD.__class__("raw", "refuse"))
        with pytest.raises(Refused, match="packet of"):
            client.ask(echo(65 << 20))
        with pytest.raises(Refused, match="unknown"):
            client.fetch("else", deadline=5.0)
        assert client.ask(echo(1)).elapsed_ms > 0
    assert not client.connected


def test_deadline_and_the_late_answer(background: Callable[..., Background]) -> None:
    served = background()
    with BlockingClient("127.0.0.1", served.port) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no answer within"):
            client.ask(later(0.1, 9), deadline=0.05)
        assert 0.05 <= time.monotonic() - began < 2.0
        time.sleep(0.1)
        for n in range(12):  # more than the credits: the late answer gave its own back
            assert int(decode(client.ask(echo(1, n), deadline=5.0).result.tensors["x"])[0]) == n


def test_credits_run_out(background: Callable[..., Background]) -> None:
    class Mean(Session):
        credits = 1

        def on_message(self, channel: Any, message: Any) -> None:
            if type(message).__name__ != "Cancel":
                super().on_message(channel, message)

    with BlockingClient("127.0.0.1", background(Mean).port) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="no answer within"):
                client.ask(HOLD, deadline=0.05)


def test_pings_between_questions(background: Callable[..., Background]) -> None:
    served = background(ping=0.6)
    with BlockingClient("127.0.0.1", served.port) as client:
        time.sleep(0.9)  # a ping waits to be answered
        assert client.ask(echo(1), deadline=5.0)
        assert len(served.sessions) == 1
        time.sleep(1.9)  # given up as dead
        assert client.ask(echo(1), deadline=5.0)
        assert len(served.sessions) == 2


def test_a_restart(background: Callable[..., Background]) -> None:
    served = background()
    with BlockingClient("127.0.0.1", served.port, backoff=Backoff(first=0.2, cap=0.3)) as client:
        client.ask(echo(1), deadline=5.0)
        served.stop()
        with pytest.raises(Unavailable):
            client.ask(echo(1), deadline=5.0)
        again = background(port=served.port)
        end = time.monotonic() + 5.0
        while True:
            try:
                client.ask(echo(1), deadline=5.0)
                break
            except Unavailable:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert len(again.sessions) == 1


def test_nobody_there(background: Callable[..., Background]) -> None:
    served = background()
    served.stop()
    client = BlockingClient("127.0.0.1", served.port, backoff=Backoff(first=5.0))
    with pytest.raises(Unavailable, match="refused"):
        client.ask(echo(1), deadline=1.0)
    client._not_before = time.monotonic() + 1.0
    with pytest.raises(Unavailable, match="not connected"):
        client.ask(echo(1), deadline=1.0)


def test_a_wrong_token(background: Callable[..., Background]) -> None:
    class Strict(Session):
        token = "right"

    served = background(Strict)
    client = BlockingClient("127.0.0.1", served.port, token="wrong")
    with pytest.raises(Refused, match="wrong token"):
        client.ask(echo(1), deadline=5.0)
    with pytest.raises(Unavailable, match="wrong token"):  # not asked again so soon
        client.ask(echo(1), deadline=5.0)
    assert len(served.sessions) == 1


def test_a_false_digest(background: Callable[..., Background]) -> None:
    class Liar(Session):
        def fetched(self, channel: Any, fetch: Fetch) -> None:
            channel.stream(fetch.id, pieces(0, digest="00"))

    with (
        BlockingClient("127.0.0.1", background(Liar).port) as client,
        pytest.raises(ProtocolError, match="digest"),
    ):
        client.fetch("file", deadline=5.0)
