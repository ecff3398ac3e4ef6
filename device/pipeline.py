"""Frame -> plan -> strategy -> answer. Every frame gets one, in time, and it says how good it is.

server answers                          the strategy's answer
round two fails                         round one's, degraded (the strategy sees to it)
no answer, the profile has a local model    the local model's, degraded
no answer, no local model               an explicit error, before the deadline
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from common import registry
from common.client import Reply
from common.errors import ConfigError, ProtocolError, Refused, Unavailable
from common.messages import Query
from device.bundle import Bundle
from device.content import blank, reader
from device.cost import Cost, Timed
from device.link import Link
from device.planner import LOCAL, STRATEGIES, Planner
from device.strategy import Answer, Conversation, Frame, Plan, Strategy

log = logging.getLogger("offboard.device")

ANSWER_WAIT = 60.0
"""Seconds that a query without a deadline may take: nothing waits for ever."""
FIRST_LOCAL = 1.0
"""Seconds assumed for the local model until it has run: it must be loaded, too."""
RUNS = 9
"""Runs whose median tells how long the local model, or the server, takes: one slow run of the local
model must not rob the server."""
REHEARSALS = 5
PAUSE = 0.05
"""Seconds before a refused query is tried again, doubled each time."""


class Asker(Protocol):
    """What the pipeline needs of `common.client.Client`."""

    @property
    def connected(self) -> bool: ...

    @property
    def rtt(self) -> float | None:
        """Seconds of the shortest round trip that the kernel has seen; None if it tells none."""
        ...

    async def ask(self, query: Query, deadline: float | None = None) -> Reply:
        """Raises Refused or Unavailable. `deadline`: seconds from now."""
        ...

    async def wait_connected(self, timeout: float) -> None:
        """Raises Unavailable."""
        ...


class Pipeline:
    """Answers the frames of one profile.

    `patience`: seconds after the link went down (`down_since`, on `time.monotonic`, None while
    it is up) that frames which no local model can answer still wait for it.
    """

    def __init__(
        self,
        bundle: Bundle,
        planner: Planner,
        client: Asker,
        worker: Executor,
        *,
        patience: float,
        link: Link,
    ) -> None:
        self.bundle = bundle
        self.planner = planner
        self.link = link
        self.read = reader(bundle.manifest)
        self.down_since: float | None = None
        self._client = client
        self._worker = worker
        self._patience = patience
        self._strategies: dict[str, Strategy] = {}
        self._local_runs: deque[float] = deque(maxlen=RUNS)
        self._server_runs: deque[float] = deque(maxlen=RUNS)
        self._local_broken: str | None = None

    async def prepare(self) -> None:
        """Make the chosen strategy. Raises ConfigError or Unavailable if it cannot work here.

        While the server is away, the local model too: the first frame should not wait for it.
        """
        await self._strategy(self.planner.strategy)
        if not self._client.connected and self._has_local:
            try:
                await self._strategy(LOCAL)
            except ConfigError as error:
                self._no_local(error)

    async def rehearse(self) -> None:
        """Load the local model and time it, if a deadline depends on how long it takes.

        Without a deadline it is left alone: a runtime weighs as much as the rest of the device.
        """
        if self.planner.deadline_ms is None or not self._has_local:
            return
        content = blank(self.bundle.manifest)
        try:
            for _ in range(REHEARSALS):
                await self._local(Frame(0, "", content, time.monotonic()), None, Cost())
        except Unavailable as error:
            log.debug("no rehearsal: %s", error)

    async def answer(self, frame: Frame) -> Answer:
        """The answer to `frame`. Raises nothing but CancelledError."""
        cost = Cost()
        plan = self.planner.plan(connected=self._client.connected, local=self._has_local)
        try:
            answer = await self._answer(frame, plan, cost)
        except (Refused, Unavailable) as error:
            answer = failed(_text(error), strategy=plan.strategy)
        except ProtocolError as error:
            log.error("frame %s: the server's answer is unusable: %s", frame.name, error)
            answer = failed(f"protocol: {error}", strategy=plan.strategy)
        except ConfigError as error:  # settings that the profile cannot follow
            answer = failed(str(error), strategy=plan.strategy)
        except Exception as error:
            log.exception("frame %s: strategy %s failed", frame.name, plan.strategy)
            answer = failed(f"internal error: {error!r}", strategy=plan.strategy)
        return self._seen(cost.stamp(answer, frame, plan, time.monotonic()))

    def _seen(self, answer: Answer) -> Answer:
        """`answer` with what the link looks like now."""
        now = time.monotonic()
        throughput, rtt = self.link.throughput(now), self.link.rtt(now)
        return replace(
            answer,
            link_mbps=None if throughput is None else throughput * 8e-6,
            link_rtt_ms=None if rtt is None else rtt * 1000.0,
        )

    @property
    def alone(self) -> bool:
        """Whether the next frame would be answered on the device: then one at a time is best."""
        plan = self.planner.plan(connected=self._client.connected, local=self._has_local)
        return plan.strategy == LOCAL

    @property
    def _has_local(self) -> bool:
        return self._local_broken is None and self.bundle.can(LOCAL)

    async def _answer(self, frame: Frame, plan: Plan, cost: Cost) -> Answer:
        until, limit = self._times(frame, plan)
        if plan.strategy == LOCAL:
            answer = await self._local(frame, limit, cost)
            if self.planner.strategy != LOCAL:
                answer = replace(answer, degraded="server unavailable: not connected")
            return answer
        try:
            return await self._remote(frame, plan, cost, until, limit)
        except (Refused, Unavailable) as error:
            if not self._has_local:
                raise
            try:
                answer = await self._local(frame, limit, cost)
            except Unavailable as second:
                raise Unavailable(f"{error}; and {second}") from None
            return replace(answer, degraded=f"server {_text(error)}")

    def _times(self, frame: Frame, plan: Plan) -> tuple[float | None, float | None]:
        """When round one must be back, and when there must be an answer (time.monotonic).

        The first leaves the local model its time on a busy device, but at most half of it all.
        """
        if plan.deadline_ms is None:
            return None, None
        whole = plan.deadline_ms / 1000.0
        limit = frame.captured + whole - min(0.02, whole / 20)
        if not self._has_local:
            return limit, limit
        local = _median(self._local_runs, FIRST_LOCAL)
        return limit - min(local * 1.5 + whole / 10, whole / 2), limit

    def _carry(self, limit: float | None) -> float | None:
        """Bytes that two exchanges can move until `limit`; None: no limit, or nothing known."""
        if limit is None:
            return None
        now = time.monotonic()
        throughput = self.link.throughput(now)
        if throughput is None:
            return None
        exchange = (self.link.rtt(now) or 0.0) + _median(self._server_runs, 0.0)
        return max(0.0, (limit - now - 2 * exchange) * throughput)

    async def _remote(
        self, frame: Frame, plan: Plan, cost: Cost, until: float | None, limit: float | None
    ) -> Answer:
        """The server's answer, tried again while that is worth it and there is time.

        With a local model it never is: that answers at once. Without one, a frame waits for a
        link that went down less than `patience` seconds ago, and for a busy server.
        """
        pause = PAUSE
        last = until
        while True:
            try:
                return await self._converse(frame, plan, cost, until, limit)
            except (Refused, Unavailable) as error:
                if self._has_local or (isinstance(error, Refused) and not error.retryable):
                    raise
                now = time.monotonic()
                since = now if self.down_since is None else self.down_since
                last = min(last or since + self._patience, since + self._patience)
                if now + pause >= last:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
                if not self._client.connected:
                    await self._client.wait_connected(last - time.monotonic())

    async def _converse(
        self, frame: Frame, plan: Plan, cost: Cost, until: float | None, limit: float | None
    ) -> Answer:
        """Drive one conversation. Round one must be back at `until`, the others at `limit`."""
        strategy = await self._strategy(plan.strategy)
        known = self.link.estimate(time.monotonic())
        steps = strategy.infer(frame, replace(plan, carry=self._carry(limit), link=known))
        move: Callable[[], Query] = partial(next, steps)
        try:
            while True:
                outcome = await self._step(strategy, move, cost)
                if isinstance(outcome, Answer):
                    return outcome
                try:
                    result = await self._ask(outcome, until, cost)
                except (Refused, Unavailable) as error:
                    move = partial(steps.throw, error)
                else:
                    move = partial(steps.send, result)
                until = limit
        finally:
            # Cancelled amid a heavy step, the generator still runs in the worker's thread.
            if not strategy.heavy:
                steps.close()

    async def _ask(self, query: Query, until: float | None, cost: Cost) -> Any:
        left = ANSWER_WAIT if until is None else until - time.monotonic()
        left = min(left, query.ms_left / 1000.0)
        if left <= 0:
            raise Unavailable("the deadline passed before the query was sent")
        reply = await Timed(self._client.ask(query, deadline=left), cost)
        cost.add(reply)
        self._server_runs.append(reply.result.server_ms / 1000.0)
        self.link.record(
            time.monotonic(),
            reply.bytes_up + reply.bytes_down,
            reply.elapsed_ms / 1000.0,
            reply.result.server_ms / 1000.0,
            self._client.rtt,
        )
        return reply.result

    async def _step(
        self, strategy: Strategy, move: Callable[[], Query], cost: Cost
    ) -> Query | Answer:
        if not strategy.heavy:
            return _advance(move, cost)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, _advance, move, cost)

    async def _strategy(self, name: str) -> Strategy:
        if name not in self._strategies:
            module = registry.load(STRATEGIES, name)
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(self._worker, module.create, self.bundle)
            self._strategies.setdefault(name, made)
        return self._strategies[name]

    def _no_local(self, error: ConfigError) -> None:
        self._local_broken = str(error)
        log.error("no local answers: %s", error)

    async def _local(self, frame: Frame, limit: float | None, cost: Cost) -> Answer:
        """The local model's answer. Raises Unavailable at `limit`, or where it cannot run."""
        left = ANSWER_WAIT if limit is None else limit - time.monotonic()
        try:
            async with asyncio.timeout(left):
                strategy = await self._strategy(LOCAL)
                started = time.monotonic()
                steps = strategy.infer(frame, Plan(LOCAL))
                answer = await self._step(strategy, partial(_first, steps), cost)
        except TimeoutError:
            raise Unavailable("the local model did not finish in time") from None
        except ConfigError as error:
            self._no_local(error)
            raise Unavailable(f"no local answer: {error}") from None
        if not isinstance(answer, Answer):
            raise TypeError("the local strategy asked a server")
        self._local_runs.append(time.monotonic() - started)
        return answer


def failed(error: str, *, strategy: str, frame: str = "") -> Answer:
    """An answer that says why there is none."""
    return Answer(
        None, 0.0, (), "device", strategy, 0, error=error, frame=frame, deadline_met=False
    )


def _median(runs: Collection[float], unknown: float) -> float:
    return sorted(runs)[len(runs) // 2] if runs else unknown


def _first(steps: Conversation) -> Query:
    return next(steps)


def _advance(move: Callable[[], Query], cost: Cost) -> Query | Answer:
    """One step of a conversation: its next query, or its answer."""
    started = time.thread_time()
    try:
        return move()
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    finally:
        cost.device_ms += (time.thread_time() - started) * 1000.0


def _text(error: Refused | Unavailable) -> str:
    kind = "refused" if isinstance(error, Refused) else "unavailable"
    return f"{kind}: {error}"
