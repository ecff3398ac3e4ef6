"""Passes queries on to a cloud peer: another server of the same profile that holds more.

    session --submit(passage)--> relay --common.client--> the peer
    passage.done(passage) <-- its result, or why there is none

What a device sent goes on as it came: the same tensors, views over what was received, under a new
head. Everything belongs to the event loop, and no decision here takes longer than a look at a few
numbers. What becomes of a query that the cloud does not answer is the session's business.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Final, Protocol

from common.client import Client, Pending, Reply
from common.errors import OffboardError, Refused
from common.messages import Query, Result, Welcome
from common.pending import OnReply
from server.executor import Job
from server.metrics import Metrics
from server.strategy import CLOUD, TIER

log = logging.getLogger("offboard.relay")

HOPS: Final = 3
"""Servers that may pass one query on."""
PATIENCE: Final = 30.0
"""Seconds that the cloud may take over a query without a deadline."""
RUNS: Final = 9
"""Own answers whose median tells how long the next one takes."""
SPARE: Final = 0.1
"""Share of the time left that is kept for an own answer beyond one and a half times that."""


class Peer(Protocol):
    """What the relay needs of `common.client.Client`."""

    @property
    def connected(self) -> bool: ...

    @property
    def rtt(self) -> float | None: ...

    @property
    def welcome(self) -> Welcome | None: ...

    def submit(self, query: Query, on_reply: OnReply, deadline: float | None = None) -> Pending: ...

    def cancel(self, pending: Pending) -> None: ...


@dataclass(frozen=True, slots=True)
class Left:
    """What round one leaves at an edge that passed it on: its id at the peer, its connection."""

    id: int
    era: int

    SIZE = 64
    """Bytes it counts for in a session's memory."""


class Passage:
    """One query on its way to the cloud and back. Times in seconds on `time.monotonic`.

    `job`: what the edge itself made of the query already, if it went that way. `left`: where round
    one is. `back`: seconds of a round trip to the device, which the deadline left out. `done` is
    called once: with `result`, or with `refused`.
    """

    __slots__ = (
        "arrived", "back", "deadline", "done", "era", "job", "left", "pending", "query",
        "refused", "result",
    )  # fmt: skip

    def __init__(
        self,
        query: Query,
        done: Callable[[Passage], None],
        *,
        arrived: float,
        deadline: float = inf,
        job: Job | None = None,
        left: Left | None = None,
        back: float = 0.0,
    ) -> None:
        self.query = query
        self.done = done
        self.arrived = arrived
        self.deadline = deadline
        self.job = job
        self.left = left
        self.back = back
        self.era = 0
        self.pending: Pending | None = None
        self.result: Result | None = None
        self.refused: Refused | None = None


class Relay:
    """The way to one peer at `address`. `held`: the strategies that this server has itself.

    `limit`: queries on their way at which it is full. Enter the client that `connect` gave it.
    """

    def __init__(
        self,
        address: str,
        digest: str,
        held: Collection[str],
        metrics: Metrics,
        *,
        limit: int = 512,
    ) -> None:
        self.address = address
        self.name = secrets.token_hex(4)
        """What this server calls itself in `Query.via`."""
        self.held = frozenset(held)
        self.pending = 0
        """Queries on their way."""
        self.trouble: str | None = "not connected yet"
        """Why nothing can be passed on; None: it can."""
        self._digest = digest
        self._metrics = metrics
        self._limit = limit
        self._era = 0
        self._own: dict[str, deque[float]] = {}
        self._peer: Peer

    def attach(self, peer: Peer) -> None:
        """Use `peer`, whose changes of state `on_state` is told of."""
        self._peer = peer

    def on_state(self, connected: bool, reason: str) -> None:
        """The client came to be connected, or is not any more."""
        if not connected:
            self.trouble = reason
            return
        self._era += 1  # what an earlier connection left at the peer is gone
        welcome = self._peer.welcome
        self.trouble = None
        if welcome is not None and welcome.digest != self._digest:
            self.trouble = (
                f"it serves profile {welcome.profile} {welcome.digest:.12}, this server "
                f"{self._digest:.12}: give both the same"
            )
            log.error("cloud=%s nothing is passed on: %s", self.address, self.trouble)

    def wanted(self, query: Query) -> bool:
        """Whether `query` must be passed on before anybody here looks at it."""
        return query.strategy not in self.held or query.params.get(TIER) == CLOUD

    def submit(self, passage: Passage) -> None:
        """Send the query on; `passage.done` is called, at once if that cannot be."""
        now = time.monotonic()
        share = self._share(passage, now)
        refused = self._refusal(passage, share)
        if refused is not None:
            self._finish(passage, refused)
            return
        query, left = passage.query, passage.left
        passage.era = self._era
        onward = replace(query, via=(*query.via, self.name), memory=0 if left is None else left.id)
        self.pending += 1
        passage.pending = self._peer.submit(onward, partial(self._replied, passage), share)

    def cancel(self, passage: Passage) -> None:
        """Nobody waits any more: the peer is told, and `done` is not called."""
        if passage.pending is not None:
            self.pending -= 1
            self._peer.cancel(passage.pending)
            passage.pending = None
            self._metrics.passed_on(passage.query.strategy, "cancelled")

    def note_own(self, strategy: str, seconds: float) -> None:
        """This server took `seconds` to answer a query of `strategy` by itself."""
        runs = self._own.get(strategy)
        if runs is None:
            runs = self._own[strategy] = deque(maxlen=RUNS)
        runs.append(seconds)

    def describe(self) -> str:
        """One line for a person."""
        passed, failed = self._metrics.passages()
        state = self.trouble
        if state is None:
            rtt = self.rtt
            state = "connected" if rtt is None else f"connected, rtt {rtt * 1e3:.1f} ms"
        return f"cloud {self.address}: {state}; {passed} answered there, {failed} not"

    @property
    def rtt(self) -> float | None:
        """Seconds of the shortest round trip to the peer; None: not known."""
        return self._peer.rtt if self.trouble is None else None

    def _share(self, passage: Passage, now: float) -> float:
        """Seconds that the cloud may have: what is left, less what an own answer takes."""
        left = passage.deadline - now
        if left == inf:
            return PATIENCE
        if passage.query.strategy not in self.held or passage.left is not None:
            return min(left, PATIENCE)
        left -= passage.back
        own = left / 2
        if passage.job is not None and passage.job.outcome is not None:
            own = SPARE * left
        elif runs := self._own.get(passage.query.strategy):
            own = min(own, 1.5 * sorted(runs)[len(runs) // 2] + SPARE * left)
        return min(left - own, PATIENCE)

    def _refusal(self, passage: Passage, share: float) -> Refused | None:
        """Why the query cannot be passed on; None: it can."""
        via = passage.query.via
        if self.name in via or len(via) >= HOPS:
            return Refused("loop", f"{len(via)} servers have passed this on; --cloud leads round")
        if passage.left is not None and (self.trouble or passage.left.era != self._era):
            return Refused(
                "forgotten", f"round one went by a connection to {self.address} lost since"
            )
        if self.trouble is not None:
            return Refused("away", f"cloud {self.address}: {self.trouble}", retryable=True)
        if self.pending >= self._limit:
            return Refused("busy", f"{self.pending} queries are out to the cloud", retryable=True)
        if share <= (self.rtt or 0.0):
            return Refused("expired", f"{max(0.0, share) * 1e3:.0f} ms are too few for the cloud")
        return None

    def _replied(self, passage: Passage, reply: Reply | OffboardError) -> None:
        self.pending -= 1
        pending, passage.pending = passage.pending, None
        if isinstance(reply, Reply):
            passage.result = reply.result
            self._metrics.passed_on(passage.query.strategy, "answered", reply)
            passage.done(passage)
        elif isinstance(reply, Refused):
            said = f"cloud {self.address}: {reply.reason}"
            self._finish(passage, Refused(reply.code, said, retryable=reply.retryable))
        elif pending is not None and time.monotonic() >= pending.at:
            self._finish(passage, Refused("expired", f"cloud {self.address}: {reply}"))
        elif passage.left is not None:
            self._finish(passage, Refused("forgotten", f"cloud {self.address}: {reply}"))
        else:
            away = Refused("away", f"cloud {self.address}: {reply}", retryable=True)
            self._finish(passage, away)

    def _finish(self, passage: Passage, refused: Refused) -> None:
        passage.refused = refused
        self._metrics.passed_on(passage.query.strategy, refused.code)
        passage.done(passage)


def client(relay: Relay, host: str, port: int, token: str) -> Client:
    """The client that `relay` uses, to be entered with `async with`; it never gives up."""
    made = Client.connect(
        host, port, token=token, agent="offboard-edge", wait=0.0, on_state=relay.on_state
    )
    relay.attach(made)
    return made
