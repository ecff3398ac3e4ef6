"""The state of one connection, as a table. Pure: no I/O, and `now` is an argument.

What a side may be sent, by its phase:

    server   HELLO      Hello, Bye
             OPEN       Query, Fetch, Cancel, Ping, Pong, Bye
             DRAINING   the same; queries and fetches are refused, not answered
    device   HELLO      Welcome, Bye
             OPEN       Result, Refusal, Chunk, Ping, Pong, Bye
             DRAINING   the same
    both     CLOSED     nothing

A device picks ids from 1; one id is outstanding once. Every query and fetch is answered exactly
once (a fetch by chunks up to the last byte), cancelled ones too: only the answer gives the credit
back. Cancel of an id that is not outstanding is harmless: the answer may have crossed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from common.errors import ProtocolError, Refused, Unavailable
from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Ping,
    Pong,
    Query,
    Refusal,
    Result,
    Welcome,
)
from common.wire import VERSIONS

MAX_ID: Final = 0xFFFFFFFF


class Side(Enum):
    """Which end of the connection this is."""

    DEVICE = "device"
    SERVER = "server"


class Phase(Enum):
    """How far the conversation has come."""

    HELLO = "before the welcome"
    OPEN = "while open"
    DRAINING = "while draining"
    CLOSED = "after Bye"


_ASKS: Final = frozenset({Query, Fetch})
_ANSWERS: Final = frozenset({Result, Refusal, Chunk})
_ASKED: Final = _ASKS | {Cancel, Ping, Pong, Bye}
_ANSWERED: Final = _ANSWERS | {Ping, Pong, Bye}

LEGAL: Final[Mapping[tuple[Side, Phase], frozenset[Any]]] = {
    (Side.SERVER, Phase.HELLO): frozenset({Hello, Bye}),
    (Side.SERVER, Phase.OPEN): _ASKED,
    (Side.SERVER, Phase.DRAINING): _ASKED,
    (Side.SERVER, Phase.CLOSED): frozenset(),
    (Side.DEVICE, Phase.HELLO): frozenset({Welcome, Bye}),
    (Side.DEVICE, Phase.OPEN): _ANSWERED,
    (Side.DEVICE, Phase.DRAINING): _ANSWERED,
    (Side.DEVICE, Phase.CLOSED): frozenset(),
}
"""The kinds a side may receive in a phase."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to wait, in seconds.

    hello: for the first message of a device. ping: of silence before asking whether the peer
    lives. dead: of silence after that ping. linger: for the peer to read our Bye.
    """

    hello: float = 10.0
    ping: float = 10.0
    dead: float = 10.0
    linger: float = 1.0


def choose_version(accept: Iterable[int], spoken: Iterable[int] = VERSIONS) -> int:
    """The best version both sides speak. Raises Refused if there is none."""
    theirs, ours = set(accept), set(spoken)
    if not theirs & ours:
        raise Refused("refused", f"no common version: {sorted(ours)} spoken here")
    return max(theirs & ours)


class State:
    """One connection seen from one side: fed with every message received and every one sent."""

    __slots__ = (
        "_began", "_greeted", "_heard", "_legal", "_pinged", "_timing", "credits", "draining",
        "open", "outstanding", "phase", "side",
    )  # fmt: skip

    def __init__(self, side: Side, now: float, timing: Timing | None = None) -> None:
        self.side = side
        self.phase = Phase.HELLO
        self.open = False
        """Whether the phase is OPEN."""
        self.draining = False
        """Whether the phase is DRAINING."""
        self.credits = 0
        """How many ids may be outstanding."""
        self.outstanding: set[int] = set()
        """Ids of queries and fetches asked and not answered."""
        self._legal = LEGAL[side, Phase.HELLO]
        self._timing = timing or Timing()
        self._began = now
        self._heard = now
        self._pinged: float | None = None
        self._greeted = False

    def enter(self, phase: Phase) -> None:
        """Move on to `phase`."""
        self.phase = phase
        self.open = phase is Phase.OPEN
        self.draining = phase is Phase.DRAINING
        self._legal = LEGAL[self.side, phase]

    def received(self, message: Message) -> bool:
        """Account for a message of the peer. False: it has no effect any more, so ignore it.

        Raises ProtocolError if the peer may not send it now.
        """
        kind = type(message)
        if kind not in self._legal:
            raise ProtocolError(f"{kind.__name__} is not allowed {self.phase.value}")
        if kind in _ASKS:
            self._ask(message.id)  # type: ignore[union-attr]
        elif kind in _ANSWERS:
            self._answer(message)
        elif kind is Cancel:
            return message.id in self.outstanding  # type: ignore[union-attr]
        elif kind is Welcome:
            self._welcome(message)  # type: ignore[arg-type]
        elif kind is Hello:
            if self._greeted:
                raise ProtocolError("Hello came twice")
            self._greeted = True
        elif kind is Bye:
            drains = message.code == "drain"  # type: ignore[union-attr]
            open_ = self.phase is not Phase.HELLO
            self.enter(Phase.DRAINING if drains and open_ else Phase.CLOSED)
        return True

    def sent(self, message: Message, id: int | None) -> None:
        """Account for a message of ours before it is written, under `id` if that is given.

        Raises ValueError for an answer to what is not outstanding, and for a query over the
        credits or of an id in use.
        """
        kind = type(message)
        if kind in _ANSWERS:
            id = message.id if id is None else id  # type: ignore[union-attr]
            if id not in self.outstanding:
                raise ValueError(f"{kind.__name__} for id {id}, which is not outstanding")
            if kind is not Chunk or _last(message):  # type: ignore[arg-type]
                self.outstanding.discard(id)
        elif kind in _ASKS:
            try:
                self._ask(message.id if id is None else id)  # type: ignore[union-attr]
            except ProtocolError as error:
                raise ValueError(error.reason) from None
        elif kind is Welcome:
            self._welcome(message)  # type: ignore[arg-type]

    def _ask(self, id: int) -> None:
        if id == 0:
            raise ProtocolError("id 0 names no query")
        if id in self.outstanding:
            raise ProtocolError(f"id {id} is outstanding already")
        if len(self.outstanding) >= self.credits:
            raise ProtocolError(f"more than the {self.credits} credits granted are outstanding")
        self.outstanding.add(id)

    def _answer(self, message: Any) -> None:
        if message.id not in self.outstanding:
            raise ProtocolError(f"answer to id {message.id}, which is not outstanding")
        if type(message) is not Chunk or _last(message):
            self.outstanding.discard(message.id)

    def _welcome(self, message: Welcome) -> None:
        if message.version not in VERSIONS:
            raise ProtocolError(f"welcomed in version {message.version}, which is not spoken here")
        self.credits = message.credits
        self.enter(Phase.OPEN)

    def tick(self, now: float, heard: bool) -> Ping | None:
        """Judge silence; call it a few times per `Timing.ping`. `heard`: any byte since last time.

        Returns the Ping to send, if any. Raises ProtocolError if no Hello came in time,
        Unavailable if the peer is dead.
        """
        if heard:
            self._heard = now
            self._pinged = None
        if self.phase is Phase.HELLO:
            # Bytes that trickle in do not count: it is the Hello that is waited for.
            if now - self._began >= self._timing.hello:
                raise ProtocolError(f"no handshake within {self._timing.hello:g} s")
            return None
        if self._pinged is not None:
            if now - self._pinged >= self._timing.dead:
                raise Unavailable(f"nothing heard for {now - self._heard:.0f} s")
            return None
        if now - self._heard >= self._timing.ping:
            self._pinged = now
            return Ping(id=1)
        return None


def _last(chunk: Chunk) -> bool:
    """Whether a file ends with `chunk`."""
    data = chunk.tensors.get("data")
    return chunk.offset + (math.prod(data.shape) if data is not None else 0) >= chunk.total
