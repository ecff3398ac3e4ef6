"""One device's conversation: Hello, queries, cancels, fetches. All on the loop, all synchronous.

Ids, credits, versions, pings and limits are the channel's business; what a strategy makes of a
query is the executor's, and what an edge cannot answer by itself the relay's. Every query is
answered once: a Result, or a Refusal whose code says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf

import numpy as np

from common.channel import Channel
from common.errors import Refused
from common.messages import (
    NO_DEADLINE,
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
    Welcome,
)
from server.executor import Job
from server.memory import NOTHING, Memory, Recalled
from server.relay import Left, Passage
from server.service import BundleFile, Service
from server.strategy import EDGE, TIER, Outcome

log = logging.getLogger("offboard.session")

AGENT = "offboard-server"
CHUNK = 64 << 10
"""Bytes of one piece of a file: a result waits behind few of them."""
LEAST_PACKET = CHUNK + 4096
"""A device that takes less could not be sent a chunk."""
NO_ROOM = "one round only: the server has no room to remember the frame"


class Session:
    """The handler of one channel (`channel.Handler`)."""

    def __init__(self, service: Service, channel: Channel) -> None:
        self.memory = Memory(service.limits.memory)
        self._service = service
        self._channel = channel
        self._jobs: dict[int, Job] = {}
        self._passages: dict[int, Passage] = {}

    # What the channel calls.

    def on_message(self, channel: Channel, message: Message) -> None:
        """A message that the protocol allows now."""
        kind = type(message)
        if kind is Query:
            self._query(message)  # type: ignore[arg-type]
        elif kind is Cancel:
            self._cancel(message.id)  # type: ignore[union-attr]
        elif kind is Fetch:
            self._fetch(message)  # type: ignore[arg-type]
        elif kind is Hello:
            self._hello(message)  # type: ignore[arg-type]

    def on_closed(self, channel: Channel, reason: str) -> None:
        """The conversation is over: drop the works that are out and forget the frames."""
        service = self._service
        if self in service.sessions:
            log.info("peer=%s left reason=%.200r", channel.peer, reason)
        else:  # anybody can connect: such lines must not fill a disk
            log.debug("peer=%s turned away reason=%.200r", channel.peer, reason)
        service.sessions.discard(self)
        service.strangers.discard(self)
        for job in self._jobs.values():
            job.cancelled = True
        self._jobs.clear()
        if service.relay is not None:
            for passage in self._passages.values():
                service.relay.cancel(passage)
        self._passages.clear()
        self.memory.clear()

    # One method per kind of message.

    def _hello(self, hello: Hello) -> None:
        service, channel = self._service, self._channel
        if not service.admits(hello.token):
            service.note_wrong_token(channel.peer, time.monotonic())
            channel.close(Bye("refused", "wrong token" if hello.token else "a token is needed"))
            return
        if len(service.sessions) >= service.limits.sessions:
            channel.close(Bye("busy", f"{len(service.sessions)} devices are connected already"))
            return
        if hello.packet_limit < LEAST_PACKET:
            channel.close(Bye("refused", f"packet_limit must be at least {LEAST_PACKET} bytes"))
            return
        service.strangers.discard(self)
        service.sessions.add(self)
        offer = service.offer
        log.info("peer=%s joined agent=%.64r", channel.peer, hello.agent)
        channel.accept(
            Welcome(
                version=channel.version,
                agent=AGENT,
                profile=offer.profile,
                digest=offer.digest,
                strategies=offer.strategies,
                packet_limit=service.wire.packet,
                credits=service.limits.credits,
            )
        )

    def _query(self, query: Query) -> None:
        now = time.monotonic()
        service = self._service
        service.metrics.bytes_in += self._channel.received
        if query.strategy not in service.offer.strategies:
            served = ", ".join(service.offer.strategies)
            self._refuse(query, Refused("unknown", f"strategies served here: {served}"))
            return
        relay = service.relay
        if service.executor.full and (relay is None or not relay.wanted(query)):
            self._refuse(query, self._busy())
            return
        recalled = NOTHING
        if query.memory:
            try:
                value = self.memory.recall(query.memory, query.strategy, now)
            except Refused as refused:
                self._refuse(query, refused)
                return
            recalled = Recalled(query.memory, value)
        deadline = inf if query.ms_left == NO_DEADLINE else now + query.ms_left / 1e3
        if relay is not None:
            left = recalled.value if isinstance(recalled.value, Left) else None
            if left is not None or (not query.memory and relay.wanted(query)):
                self._pass_on(query, now, deadline, left=left)
                return
        job = Job(query, self._done, arrived=now, deadline=deadline, source=self, recalled=recalled)
        self._jobs[query.id] = job
        service.executor.submit(job)

    def _done(self, job: Job) -> None:
        """The executor is through with `job`."""
        query = job.query
        if self._jobs.get(query.id) is not job:
            return  # cancelled, and answered when that came
        del self._jobs[query.id]
        now = time.monotonic()
        relay, outcome = self._service.relay, job.outcome
        if job.refused is not None:
            self._refuse(query, job.refused)
        elif outcome is None:
            self._onward(job)
        elif now > job.deadline:
            self._late(query, now - job.deadline)
        elif relay is None:
            self._answer(job, outcome, now)
        else:
            relay.note_own(query.strategy, now - job.arrived)
            # The cloud would not know what round one was about.
            if outcome.onward and not query.memory and query.params.get(TIER) != EDGE:
                self._onward(job)
            else:
                self._answer(job, outcome, now)

    def _answer(self, job: Job, outcome: Outcome, now: float) -> None:
        query = job.query
        wants, degraded = outcome.wants, job.degraded or outcome.degraded
        if outcome.remember is not None and not self.memory.keep(
            query.id, query.strategy, outcome.remember, outcome.size, now
        ):
            wants = None
            degraded = degraded or NO_ROOM
        queued = job.started - job.arrived
        row = outcome.probabilities.astype(np.float32, copy=False)
        result = Result(
            source="edge",
            tensors={"probabilities": Tensor(row.tobytes(), "float32", row.shape)},
            wants=wants,
            server_ms=(now - job.arrived + job.waited) * 1e3,
            queue_ms=queued * 1e3,
            degraded=degraded,
            id=query.id,
        )
        size = self._channel.send(result)
        self._service.metrics.result(query.strategy, query.step, queued, size)

    # By way of the cloud.

    def _onward(self, job: Job) -> None:
        """What `job` is about is for a server that holds more."""
        query, relay = job.query, self._service.relay
        if query.params.get(TIER) == EDGE:
            self._refuse(query, Refused("failed", f"{query.strategy} has no answer of its own"))
        elif relay is None or query.memory:  # of round two the cloud would know nothing
            self._alone(query, "no cloud is behind this server", job.arrived, job)
        else:
            self._pass_on(query, job.arrived, job.deadline, job=job)

    def _pass_on(
        self,
        query: Query,
        arrived: float,
        deadline: float,
        job: Job | None = None,
        left: Left | None = None,
    ) -> None:
        assert self._service.relay is not None
        tcp = self._channel.tcp
        passage = Passage(
            query, self._passed, arrived=arrived, deadline=deadline, job=job, left=left,
            back=0.0 if tcp is None else tcp.rtt or 0.0,
        )  # fmt: skip
        self._passages[query.id] = passage
        self._service.relay.submit(passage)

    def _passed(self, passage: Passage) -> None:
        """The relay is through with `passage`."""
        query = passage.query
        if self._passages.get(query.id) is not passage:
            return
        del self._passages[query.id]
        now = time.monotonic()
        if passage.result is None:
            self._without_cloud(passage, passage.refused or Refused("failed", "no result"), now)
        elif now > passage.deadline:
            self._late(query, now - passage.deadline)
        else:
            self._pass_back(passage, passage.result, now)

    def _pass_back(self, passage: Passage, result: Result, now: float) -> None:
        """The cloud's answer, as it came."""
        query, wants, degraded = passage.query, result.wants, result.degraded
        left = Left(result.id, passage.era)
        if wants is not None and not self.memory.keep(
            query.id, query.strategy, left, Left.SIZE, now
        ):
            wants, degraded = None, degraded or NO_ROOM
        spent = (now - passage.arrived) * 1e3
        answer = replace(
            result, source="cloud", wants=wants, degraded=degraded, server_ms=spent, id=query.id
        )
        try:
            size = self._channel.send(answer)
        except ValueError as error:  # more than the device takes
            self._refuse(query, Refused("failed", f"the cloud's answer: {error}"))
            return
        self._service.metrics.answered(query.strategy, query.step, size)

    def _without_cloud(self, passage: Passage, refused: Refused, now: float) -> None:
        """Answer by what this server holds, if that is something, and say why."""
        query, job, relay = passage.query, passage.job, self._service.relay
        assert relay is not None
        if passage.left is not None or query.strategy not in relay.held:
            self._refuse(query, refused)
        elif job is None or job.outcome is None:
            self._alone(query, str(refused), passage.arrived, passage)
        elif now > passage.deadline:
            self._late(query, now - passage.deadline)
        else:
            job.degraded = str(refused)
            self._answer(job, job.outcome, now)

    def _alone(self, query: Query, why: str, arrived: float, asked: Job | Passage) -> None:
        """Answer `query` by this server's own means, degraded."""
        executor, now = self._service.executor, time.monotonic()
        if executor.full:
            self._refuse(query, self._busy())
            return
        query = replace(query, params={**query.params, TIER: EDGE})
        recalled = asked.recalled if isinstance(asked, Job) else NOTHING
        job = Job(
            query, self._done, arrived=now, deadline=asked.deadline, source=self, recalled=recalled
        )
        job.degraded, job.waited = why, now - arrived
        self._jobs[query.id] = job
        executor.submit(job)

    # Declining.

    def _cancel(self, id: int) -> None:
        job, passage = self._jobs.pop(id, None), self._passages.pop(id, None)
        if passage is not None:
            assert self._service.relay is not None
            self._service.relay.cancel(passage)
        elif job is not None:
            job.cancelled = True
        asked = passage or job
        if asked is not None:
            self._refuse(asked.query, Refused("cancelled", "the device no longer waits"))

    def _busy(self) -> Refused:
        reason = f"{self._service.executor.pending} queries are waiting already"
        return Refused("busy", reason, retryable=True)

    def _late(self, query: Query, seconds: float) -> None:
        reason = f"done {seconds * 1e3:.0f} ms after the deadline"
        self._refuse(query, Refused("expired", reason))

    def _fetch(self, fetch: Fetch) -> None:
        file = self._service.offer.bundle.get(fetch.path)
        refused = None
        if file is None:
            refused = Refused("unknown", f"the bundle has no file {fetch.path[:200]!r}")
        elif not 0 <= fetch.offset <= len(file.data):
            refused = Refused("bad", f"offset {fetch.offset} of {len(file.data)} bytes")
        if file is None or refused is not None:
            assert refused is not None
            self._channel.send(Refusal(refused.code, refused.reason, False, id=fetch.id))
            return
        self._channel.stream(fetch.id, _chunks(fetch, file))

    def _refuse(self, query: Query, refused: Refused) -> None:
        known = query.strategy if query.strategy in self._service.offer.strategies else ""
        self._service.metrics.refusal(known, refused.code)
        self._channel.send(
            Refusal(refused.code, refused.reason[:500], refused.retryable, id=query.id)
        )


def _chunks(fetch: Fetch, file: BundleFile) -> Iterator[Chunk]:
    """The rest of `file`; an empty chunk if there is none."""
    total = len(file.data)
    for at in range(fetch.offset, max(total, fetch.offset + 1), CHUNK):
        piece = memoryview(file.data)[at : at + CHUNK]
        data = Tensor(piece, "uint8", (len(piece),))
        yield Chunk(at, total, file.sha256, {"data": data}, id=fetch.id)
