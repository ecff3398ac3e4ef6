"""The queries of one client that are not answered yet. Pure: `now` is an argument.

A query waits for a credit, flies under an id, and leaves with its answer. One that was given up
keeps its id until the server has answered all the same: only then is the id free again.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from common.errors import OffboardError
from common.messages import NO_DEADLINE, Chunk, Fetch, Query, Result
from common.protocol import MAX_ID

log = logging.getLogger("offboard.client")


class Reply(NamedTuple):
    """A result and what it cost.

    bytes_up, bytes_down: whole packets. elapsed_ms: from the asking to the answer, the wait for a
    credit included. `result.id` names the query in `memory` of a second round.
    """

    result: Result
    bytes_up: int
    bytes_down: int
    elapsed_ms: float


OnReply = Callable[[Reply | OffboardError], None]
OnChunk = Callable[[Chunk], None]


class Pending:
    """One query or fetch. Times on `time.monotonic`; `at` infinite: no deadline."""

    __slots__ = ("asked", "at", "began", "bytes_up", "id", "on_chunk", "on_reply")

    def __init__(
        self,
        asked: Query | Fetch,
        on_reply: OnReply,
        on_chunk: OnChunk | None,
        began: float,
        at: float,
    ) -> None:
        self.asked = asked
        self.on_reply = on_reply
        self.on_chunk = on_chunk
        self.began = began
        self.at = at
        self.id = 0
        """The id it flies under; 0: not sent yet."""
        self.bytes_up = 0

    def answer(self, reply: Reply | OffboardError) -> None:
        """Call `on_reply`: one caller's mistake must not take the others' answers along."""
        try:
            self.on_reply(reply)
        except Exception:
            log.exception("on_reply failed")

    def ms_left(self, now: float) -> int:
        """Milliseconds left, as they travel in the prefix."""
        left = (self.at - now) * 1000
        if left == math.inf:
            return NO_DEADLINE
        return min(math.ceil(left), NO_DEADLINE - 1) if left > 0 else 0


class Book:
    """Every query of one client, waiting or flying."""

    __slots__ = ("_flying", "_last", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Pending] = deque()
        """Those not sent yet, in order."""
        self._flying: dict[int, Pending | None] = {}
        self._last = 0

    def fly(self, pending: Pending) -> int:
        """Give `pending` an id that is not in use."""
        id = self._last % MAX_ID + 1
        while id in self._flying:
            id = id % MAX_ID + 1
        self._last = pending.id = id
        self._flying[id] = pending
        return id

    def of(self, id: int) -> Pending | None:
        """The one that flies under `id`, unless it was given up."""
        return self._flying.get(id)

    def land(self, id: int) -> Pending | None:
        """`id` is answered: who asked, unless it was given up."""
        return self._flying.pop(id, None)

    def give_up(self, pending: Pending) -> bool:
        """Nobody waits for `pending` any more. True if the server should be told."""
        if self._flying.get(pending.id) is pending:
            self._flying[pending.id] = None
            return True
        if pending in self.waiting:
            self.waiting.remove(pending)
        return False

    def late(self, now: float) -> tuple[list[Pending], float]:
        """Those whose deadline has passed, and the earliest deadline of the others."""
        everyone = self._everyone()
        earliest = min((p.at for p in everyone if p.at > now), default=math.inf)
        return [p for p in everyone if p.at <= now], earliest

    def clear(self) -> list[Pending]:
        """Forget everything; those that were still waited for."""
        everyone = self._everyone()
        self._flying.clear()
        self.waiting.clear()
        return everyone

    def _everyone(self) -> list[Pending]:
        return [p for p in self._flying.values() if p is not None] + list(self.waiting)
