"""An edge and its cloud, over real sockets: what is passed on, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np
import pytest

from common import sockets
from common.backoff import Backoff
from common.client import Client, Pending, Reply
from common.codec import decode
from common.errors import Refused, Unavailable
from common.messages import Query, Tensor, Welcome
from common.pending import OnReply
from server.executor import Job
from server.metrics import Metrics
from server.relay import HOPS, PATIENCE, Left, Passage, Relay, client
from server.strategy import EDGE, TIER, Memory, Outcome, PassOn, Work
from tests.proxy import Proxy
from tests.serving import WAIT, Running, Scripted, query, running, soon

OWN = 100
"""What an edge adds to the value, so that an answer tells who gave it."""


@dataclass
class Edge(Scripted):
    """Holds "scripted", too, but passes on: step "onward" by its outcome, "pass" by `prepare`."""

    stubborn: bool = False

    def prepare(self, query: Query, memory: Memory) -> Work:
        """As Scripted's."""
        work = super().prepare(query, memory)
        if query.step == "pass" and (self.stubborn or query.params.get(TIER) != EDGE):
            raise PassOn
        return work

    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """As Scripted's, OWN more."""
        return [
            replace(
                outcome,
                probabilities=outcome.probabilities + np.float32(OWN),
                onward=work.params["step"] == "onward",
            )
            for work, outcome in zip(works, super().forward(works), strict=True)
        ]


@asynccontextmanager
async def edge(
    port: int,
    held: Scripted | None = None,
    *,
    digest: str = "d" * 64,
    token: str = "",
    limit: int = 512,
) -> AsyncIterator[Running]:
    """A server whose cloud is at `port`, connected or not."""
    async with running({} if held is None else {"scripted": held}) as server:
        relay = Relay(
            f"127.0.0.1:{port}", digest, server.service.executor._strategies,
            server.service.metrics,
        )  # fmt: skip
        server.service.offer = replace(server.service.offer, strategies=("scripted",))
        server.service.relay = relay
        async with client(relay, "127.0.0.1", port, token):
            yield server


async def linked(server: Running) -> None:
    """Wait until `server` can pass on."""
    relay = server.service.relay
    assert relay is not None
    await soon(lambda: relay.trouble is None)


def cloud_ask(value: int = 1, step: str = "whole", **params: Any) -> Query:
    return query(value, step, tier="cloud", **params)


def value(reply: Reply) -> float:
    return float(decode(reply.result.tensors["probabilities"])[0])


Test = Callable[[Client, Running, Running], Awaitable[None]]


def through(test: Test, cloud: Scripted, held: Scripted | None = None, **options: Any) -> None:
    """Run `test` with a device at an edge that holds `held` and is connected to `cloud`."""

    async def main() -> None:
        async with (
            running({"scripted": cloud}, **options) as far,
            edge(far.port, held) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            await test(device, near, far)

    asyncio.run(main())


def test_what_is_not_held_is_answered_by_the_cloud() -> None:
    asked: list[Query] = []

    async def test(device: Client, near: Running, far: Running) -> None:
        reply = await device.ask(query(5), deadline=WAIT)
        assert value(reply) == 5
        result = reply.result
        assert (result.source, result.degraded) == ("cloud", None)
        assert 0 <= result.queue_ms <= result.server_ms <= reply.elapsed_ms
        relay = near.service.relay
        assert relay is not None
        assert asked[0].via == (relay.name,)
        assert 0 < asked[0].ms_left <= WAIT * 1e3
        assert relay.pending == 0
        metrics = near.service.metrics
        assert metrics.passed == {("scripted", "answered"): 1}
        assert metrics.results == {("scripted", "whole"): 1}
        assert min(metrics.bytes_cloud) > 30
        assert "connected" in relay.describe()
        assert "1 answered there, 0 not" in relay.describe()

    through(test, Scripted(on_prepare=asked.append))


def test_the_time_spent_is_taken_off_the_deadline() -> None:
    async def main() -> None:
        asked: list[Query] = []
        async with (
            running({"scripted": Scripted(on_prepare=asked.append)}) as far,
            Proxy.to(far.port) as proxy,
            edge(proxy.port) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            relay = near.service.relay
            assert relay is not None
            spend = relay._peer.submit

            def late(query: Query, on_reply: OnReply, deadline: float | None = None) -> Pending:
                time.sleep(0.05)  # as a busy loop would
                assert deadline is not None
                return spend(query, on_reply, deadline - 0.05)

            relay._peer.submit = late  # type: ignore[method-assign]
            await device.ask(query(5), deadline=1.0)
            assert asked[0].ms_left <= 950

    asyncio.run(main())


def test_both_rounds_reach_the_same_peer_under_its_own_ids() -> None:
    async def test(device: Client, near: Running, far: Running) -> None:
        for _ in range(3):  # ids at the device and at the edge go apart
            await device.ask(query(1, TIER=EDGE), deadline=WAIT)
        other = await Client.connect("127.0.0.1", near.port).__aenter__()
        await other.ask(query(1), deadline=WAIT)
        firsts = [
            await each.ask(query(40 + i, "remember"), deadline=WAIT)
            for i, each in enumerate((device, other))
        ]
        assert [first.result.wants for first in firsts] == [b"\x01", b"\x01"]
        for i, each in ((1, other), (0, device)):
            memory = firsts[i].result.id
            second = await each.ask(query(0, "recall", memory=memory), deadline=WAIT)
            assert value(second) == 40 + i
            assert second.result.source == "cloud"
            with pytest.raises(Refused, match="forgotten"):  # once
                await each.ask(query(0, "recall", memory=memory), deadline=WAIT)
        first = await device.ask(query(7, "remember"), deadline=WAIT)
        with pytest.raises(Refused, match="forgotten"):  # another device's
            await other.ask(query(0, "recall", memory=first.result.id), deadline=WAIT)
        await other.close()

    through(test, Scripted())


@pytest.mark.parametrize("held", [None, Edge()])
def test_a_second_round_after_the_link_broke_is_forgotten(held: Edge | None) -> None:
    """Whatever the edge holds: round one's state is at the cloud, and that connection's."""

    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as far,
            Proxy.to(far.port) as proxy,
            edge(proxy.port, held) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            relay = near.service.relay
            assert relay is not None
            ask = replace(query(7, "remember"), params={TIER: "cloud"})
            firsts = [await device.ask(ask, deadline=WAIT) for _ in range(3)]
            gone = [replace(query(0, "recall"), memory=each.result.id) for each in firsts]
            proxy.stall()
            cut = asyncio.create_task(device.ask(gone[0], deadline=WAIT))
            await soon(lambda: relay.pending == 1)
            proxy.cut()
            proxy.resume()
            with pytest.raises(Refused, match=r"forgotten: .*127\.0\.0\.1"):
                await cut
            await soon(lambda: relay.trouble is None)
            with pytest.raises(Refused, match="forgotten: round one went by"):
                await device.ask(gone[1], deadline=WAIT)
            assert value(await device.ask(query(8, TIER="cloud"), deadline=WAIT)) in (8, 8 + OWN)

    asyncio.run(main())


def test_tensors_go_on_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes received are the bytes written: nothing is decoded, nothing copied."""
    received: list[Query] = []
    written: list[Any] = []
    size = 200_000
    write = sockets.Outlet.write

    def spy(self: sockets.Outlet, buffers: list[Any], total: int) -> None:
        if total > size:
            written.append(buffers)
        write(self, buffers, total)

    async def test(device: Client, near: Running, far: Running) -> None:
        relay = near.service.relay
        assert relay is not None
        submit = relay.submit

        def note(passage: Passage) -> None:
            received.append(passage.query)
            submit(passage)

        monkeypatch.setattr(relay, "submit", note)
        monkeypatch.setattr(sockets.Outlet, "write", spy)
        x = Tensor(bytes(range(200)) * (size // 200), "uint8", (size,), "zstd")  # garbage
        extra = Tensor(b"\x07" * 5000, "uint8", (5000,))
        asked = replace(query(7), tensors={"x": x, "more": extra})
        assert value(await device.ask(asked, deadline=WAIT)) == 0

    through(test, Scripted())
    (arrived,) = received
    sent = written[-1]
    assert len(written) == 2  # the device's, the edge's
    for name, buffer in zip(arrived.tensors, sent[1:], strict=True):
        assert buffer is arrived.tensors[name].data


def test_cancel_is_passed_on() -> None:
    cloud = Scripted(hold=threading.Event())

    async def test(device: Client, near: Running, far: Running) -> None:
        relay = near.service.relay
        assert relay is not None
        assert cloud.hold is not None
        first = asyncio.create_task(device.ask(query(1), deadline=WAIT))
        assert await asyncio.to_thread(cloud.entered.wait, WAIT)
        second = asyncio.create_task(device.ask(query(2), deadline=WAIT))
        await soon(lambda: relay.pending == 2)
        await soon(lambda: far.service.executor.pending == 2)
        second.cancel()
        await soon(lambda: relay.pending == 1)
        await soon(lambda: far.service.metrics.refusals == {("scripted", "cancelled"): 1})
        await device.close()  # and so is a device that leaves
        await soon(lambda: relay.pending == 0)
        await soon(lambda: far.service.metrics.refusals == {("scripted", "cancelled"): 2})
        cloud.hold.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert cloud.forwards == [[1]]

    through(test, cloud)


def test_a_busy_cloud_is_a_refusal_to_retry_or_the_edges_own_answer() -> None:
    cloud = Scripted(hold=threading.Event())

    async def test(device: Client, near: Running, far: Running) -> None:
        assert cloud.hold is not None
        first = asyncio.create_task(device.ask(cloud_ask(1), deadline=WAIT))
        assert await asyncio.to_thread(cloud.entered.wait, WAIT)
        reply = await device.ask(cloud_ask(2), deadline=WAIT)
        assert value(reply) == 2 + OWN
        assert "busy" in str(reply.result.degraded)
        relay = near.service.relay
        assert relay is not None
        relay.held = frozenset()
        with pytest.raises(Refused, match="busy") as refused:
            await device.ask(query(3), deadline=WAIT)
        assert refused.value.retryable
        relay._limit = 1  # and what the edge itself lets out is bounded
        with pytest.raises(Refused, match="busy: 1 queries are out to the cloud") as refused:
            await device.ask(query(3), deadline=WAIT)
        assert refused.value.retryable
        cloud.hold.set()
        assert value(await first) == 1

    through(test, cloud, Edge(), limit=1)


@pytest.mark.parametrize("asked", [cloud_ask(3), query(3, "pass"), query(3, "onward")])
def test_an_edge_without_its_cloud_answers_by_itself_and_says_so(asked: Query) -> None:
    held = Edge()

    async def main() -> None:
        async with (
            Proxy.to(9) as nobody,
            edge(nobody.port, held) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            reply = await device.ask(asked, deadline=WAIT)
            assert value(reply) == 3 + OWN
            assert reply.result.source == "edge"
            assert str(reply.result.degraded).startswith("away: cloud 127.0.0.1:")
            assert held.forwards == [[3]]  # computed once
            assert value(await device.ask(query(4), deadline=WAIT)) == 4 + OWN
            held.stubborn = True
            with pytest.raises(Refused, match="failed: scripted has no answer of its own"):
                await device.ask(query(3, "pass"), deadline=WAIT)

    asyncio.run(main())


def test_what_only_the_cloud_holds_is_refused_without_it() -> None:
    async def main() -> None:
        async with (
            Proxy.to(9) as nobody,
            edge(nobody.port) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            with pytest.raises(Refused, match="away") as refused:
                await device.ask(query(3), deadline=WAIT)
            assert refused.value.retryable
            assert near.service.metrics.passed == {("scripted", "away"): 1}
            relay = near.service.relay
            assert relay is not None
            assert "0 answered there, 1 not" in relay.describe()
            assert relay.rtt is None

    asyncio.run(main())


def test_what_a_strategy_passes_on_is_answered_by_the_cloud() -> None:
    held = Edge()

    async def test(device: Client, near: Running, far: Running) -> None:
        for asked in (query(3, "pass"), query(3, "onward"), cloud_ask(3)):
            reply = await device.ask(asked, deadline=WAIT)
            assert (value(reply), reply.result.source) == (3, "cloud")
        assert held.forwards == [[3]]
        for asked in (query(3, "onward", tier=EDGE), query(3, "pass", tier=EDGE), query(3)):
            reply = await device.ask(asked, deadline=WAIT)
            assert (value(reply), reply.result.source) == (3 + OWN, "edge")
            assert reply.result.degraded is None

    through(test, Scripted(), held)


def test_a_second_round_of_the_edges_own_is_not_passed_on() -> None:
    """The cloud would not know what round one was about."""

    async def test(device: Client, near: Running, far: Running) -> None:
        first = await device.ask(query(3, "remember"), deadline=WAIT)
        second = await device.ask(
            query(0, "recall", memory=first.result.id, tier="cloud"), deadline=WAIT
        )
        assert (value(second), second.result.source) == (3 + OWN, "edge")

    through(test, Scripted(), Edge())


def test_a_strategy_that_passes_on_where_there_is_no_cloud_answers_by_itself() -> None:
    async def main() -> None:
        async with (
            running({"scripted": Edge()}) as server,
            Client.connect("127.0.0.1", server.port) as device,
        ):
            for step in ("onward", "pass"):
                reply = await device.ask(query(3, step), deadline=WAIT)
                assert value(reply) == 3 + OWN
            assert reply.result.degraded == "no cloud is behind this server"

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["stall", "cut"])
def test_a_cloud_lost_amid_a_query_is_answered_for_within_the_deadline(trouble: str) -> None:
    held = Edge()

    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as far,
            Proxy.to(far.port) as proxy,
            edge(proxy.port, held) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            relay = near.service.relay
            assert relay is not None
            await device.ask(query(1), deadline=WAIT)
            proxy.stall()
            asks = [
                asyncio.create_task(device.ask(cloud_ask(5), deadline=3.0)),
                asyncio.create_task(device.ask(query(6, "onward"), deadline=3.0)),
            ]
            await soon(lambda: relay.pending == 2)
            if trouble == "cut":
                proxy.cut()
            for number, reply in zip((5, 6), await asyncio.gather(*asks), strict=True):
                assert value(reply) == number + OWN
                assert reply.result.source == "edge"
                why = "expired: cloud" if trouble == "stall" else "away: cloud"
                assert str(reply.result.degraded).startswith(why)
                assert 0 < reply.result.queue_ms <= reply.result.server_ms <= reply.elapsed_ms
            relay.held = frozenset()
            with pytest.raises((Refused, Unavailable), match=r"no answer within|away"):
                await device.ask(query(7), deadline=0.3)
            proxy.resume()
            relay.held = frozenset({"scripted"})
            await linked(near)
            assert (await device.ask(cloud_ask(8), deadline=WAIT)).result.source == "cloud"

    asyncio.run(main())


def test_a_cloud_that_comes_back_is_used_again() -> None:
    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as far,
            Proxy.to(far.port) as proxy,
            edge(proxy.port, Edge()) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            relay = near.service.relay
            assert relay is not None
            await proxy.stop()
            await soon(lambda: relay.trouble is not None)
            assert value(await device.ask(cloud_ask(5), deadline=WAIT)) == 5 + OWN
            await proxy.start()
            await linked(near)
            assert value(await device.ask(cloud_ask(5), deadline=WAIT)) == 5

    asyncio.run(main())


def test_edges_that_point_at_each_other_refuse() -> None:
    async def main() -> None:
        async with Proxy.to(9) as proxy, edge(proxy.port) as one, edge(one.port) as other:
            proxy.target = other.port
            await linked(one)
            await linked(other)
            async with Client.connect("127.0.0.1", one.port) as device:
                with pytest.raises(Refused, match=r"loop: .*2 servers have passed this on"):
                    await device.ask(query(3), deadline=WAIT)
            for server in (one, other):
                assert server.service.metrics.passed == {("scripted", "loop"): 1} or (
                    server.service.metrics.passed == {("scripted", "loop"): 2}
                )

    asyncio.run(main())


def test_an_edge_that_points_at_itself_answers_by_itself() -> None:
    async def main() -> None:
        async with Proxy.to(9) as proxy, edge(proxy.port, Edge()) as near:
            proxy.target = near.port
            await linked(near)
            async with Client.connect("127.0.0.1", near.port) as device:
                reply = await device.ask(query(3, "onward"), deadline=WAIT)
                assert value(reply) == 3 + OWN
                assert "loop" in str(reply.result.degraded)

    asyncio.run(main())


def test_a_cloud_of_another_profile_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as far,
            edge(far.port, Edge(), digest="e" * 64) as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await soon(lambda: bool(far.service.sessions))
            relay = near.service.relay
            assert relay is not None
            await soon(lambda: "profile" in str(relay.trouble))
            reply = await device.ask(cloud_ask(3), deadline=WAIT)
            assert value(reply) == 3 + OWN
            why = "it serves profile scripted dddddddddddd, this server eeeeeeeeeeee"
            assert why in str(reply.result.degraded)
            assert why in relay.describe()
            assert "nothing is passed on" in caplog.text

    asyncio.run(main())


def test_a_cloud_that_wants_another_token_is_named() -> None:
    async def main() -> None:
        async with (
            running({"scripted": Scripted()}, token="secret") as far,
            edge(far.port, token="guess") as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            relay = near.service.relay
            assert relay is not None
            await soon(lambda: "token" in str(relay.trouble))
            with pytest.raises(Refused, match=r"away: .*wrong token"):
                await device.ask(query(3), deadline=WAIT)

    asyncio.run(main())


def test_the_right_token_opens_the_cloud() -> None:
    async def main() -> None:
        async with (
            running({"scripted": Scripted()}, token="secret") as far,
            edge(far.port, token="secret") as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await linked(near)
            assert value(await device.ask(query(3), deadline=WAIT)) == 3

    asyncio.run(main())


class Longest(random.Random):
    """Draws the longest pause there is, and notes it."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.drawn.append((a, b))
        return b


def test_a_cloud_that_closes_again_and_again_is_tried_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = Longest()
    monkeypatch.setattr("common.client.Backoff", lambda: Backoff(0.01, 0.08, pauses))
    tried = 0

    async def shut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(shut, "127.0.0.1", 0) as rude:
            port = rude.sockets[0].getsockname()[1]
            async with edge(port, Edge()) as near, Client.connect("127.0.0.1", near.port) as device:
                await soon(lambda: len(pauses.drawn) >= 6)
                assert tried <= len(pauses.drawn) + 1, "one attempt a pause"
                assert value(await device.ask(cloud_ask(3), deadline=WAIT)) == 3 + OWN

    asyncio.run(main())
    assert [top for _, top in pauses.drawn[:6]] == [0.01, 0.02, 0.04, 0.08, 0.08, 0.08]


def test_a_cloud_that_closes_soon_after_its_welcome_is_no_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = Longest()
    monkeypatch.setattr("common.client.Backoff", lambda: Backoff(0.01, 0.08, pauses))

    async def main() -> None:
        async with (
            running({"scripted": Scripted()}) as far,
            Proxy.to(far.port) as proxy,
            edge(proxy.port, Edge()) as near,
        ):
            relay = near.service.relay
            assert relay is not None
            for _ in range(5):
                await linked(near)
                proxy.cut()
                await soon(lambda: relay.trouble is not None)
            await soon(lambda: len(pauses.drawn) >= 5)

    asyncio.run(main())
    assert [top for _, top in pauses.drawn[:5]] == [0.01, 0.02, 0.04, 0.08, 0.08]


def test_a_cloud_that_refuses_is_left_alone_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = Longest()
    monkeypatch.setattr("common.client.Backoff", lambda: Backoff(0.01, random=pauses))

    async def main() -> None:
        async with (
            running({"scripted": Scripted()}, token="secret") as far,
            edge(far.port, Edge(), token="guess") as near,
            Client.connect("127.0.0.1", near.port) as device,
        ):
            await soon(lambda: bool(pauses.drawn))
            reply = await device.ask(cloud_ask(3), deadline=WAIT)
            assert value(reply) == 3 + OWN
            assert "wrong token" in str(reply.result.degraded)

    asyncio.run(main())
    assert pauses.drawn == [(30.0, 60.0)]


def test_an_answer_too_large_for_the_device_is_a_refusal() -> None:
    class Wide(Scripted):
        def forward(self, works: Sequence[Work]) -> list[Outcome]:
            return [Outcome(np.zeros(1000, np.float32)) for _ in works]

    async def test(device: Client, near: Running, far: Running) -> None:
        (session,) = near.service.sessions
        session._channel._peer_limit = 2000
        with pytest.raises(Refused, match="failed: the cloud's answer: packet of"):
            await device.ask(query(3), deadline=WAIT)
        (session,) = near.service.sessions
        assert not session._passages

    through(test, Wide())


@dataclass
class Recorded:
    """A peer that keeps what it is given."""

    welcome: Welcome | None = None
    rtt: float | None = 0.02
    connected: bool = True
    asked: list[tuple[Query, float]] = field(default_factory=list)

    def submit(self, query: Query, on_reply: OnReply, deadline: float | None = None) -> Pending:
        """Keep it."""
        assert deadline is not None
        self.asked.append((query, deadline))
        return Pending(query, on_reply, None, 0.0, 0.0)

    def cancel(self, pending: Pending) -> None:
        """Nothing."""


def relayed(peer: Recorded, *held: str) -> Relay:
    relay = Relay("cloud:1", "d", held, Metrics())
    relay.attach(peer)
    relay.on_state(True, "connected")
    return relay


def share(relay: Relay, seconds: float | None, **more: Any) -> float | str:
    """What the peer was given of `seconds`, or the code of the refusal."""
    ended: list[Passage] = []
    now = time.monotonic()
    deadline = inf if seconds is None else now + seconds
    passage = Passage(query(), ended.append, arrived=now, deadline=deadline, **more)
    relay.submit(passage)
    if ended:
        assert passage.refused is not None
        return passage.refused.code
    peer = relay._peer
    assert isinstance(peer, Recorded)
    return peer.asked[-1][1]


def test_time_is_kept_for_an_answer_of_ones_own() -> None:
    relay = relayed(Recorded(), "scripted")
    assert share(relay, 1.0) == pytest.approx(0.5, abs=0.01)  # nothing known yet
    for seconds in (0.1, 0.08, 9.0):
        relay.note_own("scripted", seconds)
    assert share(relay, 1.0) == pytest.approx(1 - 0.15 - 0.1, abs=0.01)
    assert share(relay, 1.0, back=0.3) == pytest.approx(0.7 - 0.15 - 0.07, abs=0.01)
    assert share(relay, 0.1) == pytest.approx(0.05, abs=0.01)  # never more than half
    assert share(relay, 0.02) == "expired"  # less than a round trip is left
    assert share(relay, -1.0) == "expired"
    assert share(relay, None) == PATIENCE
    assert share(relay, 1e6) == PATIENCE


def test_all_the_time_is_the_clouds_where_there_is_no_other_answer() -> None:
    assert share(relayed(Recorded()), 1.0) == pytest.approx(1.0, abs=0.01)
    relay = relayed(Recorded(), "scripted")
    assert share(relay, 1.0, left=Left(7, 1)) == pytest.approx(1.0, abs=0.01)
    assert share(relay, 1.0, left=Left(7, 0)) == "forgotten"
    relay.on_state(False, "gone")
    assert share(relay, 1.0, left=Left(7, 1)) == "forgotten"


def test_an_answer_that_is_there_already_needs_little_time() -> None:
    relay = relayed(Recorded(), "scripted")
    job = Job(query(), lambda job: None, arrived=0.0)
    assert share(relay, 1.0, job=job) == pytest.approx(0.5, abs=0.01)
    job.outcome = Outcome(np.zeros(2, np.float32))
    assert share(relay, 1.0, job=job) == pytest.approx(0.9, abs=0.01)


def test_hops_are_bounded() -> None:
    peer = Recorded()
    relay = relayed(peer)
    for hops in range(HOPS + 2):
        via = tuple(map(str, range(hops)))
        ended: list[Passage] = []
        passage = Passage(replace(query(), via=via), ended.append, arrived=0.0)
        relay.submit(passage)
        assert len(ended) == (hops >= HOPS)
    assert [len(asked.via) for asked, _ in peer.asked] == list(range(1, HOPS + 1))


def test_an_answer_that_comes_too_late_is_expired() -> None:
    cloud = Scripted(hold=threading.Event())

    async def test(device: Client, near: Running, far: Running) -> None:
        assert cloud.hold is not None
        asked = asyncio.create_task(device.ask(query(1), deadline=WAIT))
        assert await asyncio.to_thread(cloud.entered.wait, WAIT)
        (session,) = near.service.sessions
        for passage in session._passages.values():  # as if the time had passed
            passage.deadline = time.monotonic()
        cloud.hold.set()
        with pytest.raises(Refused, match=r"expired: done \d+ ms after the deadline"):
            await asked
        assert not session._passages

    through(test, cloud)
