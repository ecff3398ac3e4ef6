"""The server's contract: Work, Memory, Strategy(prepare, forward).

`prepare` runs on a CPU thread off the event loop and may refuse one query without harming others;
`forward` runs works of one batch key on the accelerator's thread.

A server started with `--cloud` is an edge: it may hold less of a model than its cloud peer. Where
that is not enough a strategy passes the query on, from `prepare` by raising `PassOn`, from
`forward` by `Outcome.onward`; the relay then sends the query on as it came. `params[TIER]` says who
is to answer: "cloud" is passed on before `prepare` sees it; of "edge" the strategy answers by what
it holds, which is also how a query comes back when the cloud is away.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.messages import Query

Arrays = Mapping[str, npt.NDArray[Any]]
TIER = "tier"
"""The parameter of any query that says who is to answer it: EDGE, CLOUD, or whoever can."""
EDGE, CLOUD = "edge", "cloud"


class PassOn(Exception):
    """Raised by `prepare`: this query is for a server that holds more. Never of TIER "edge"."""


@dataclass(frozen=True, slots=True)
class Work:
    """One query made ready: works of equal `key` (strategy first) may share a forward.

    `arrays`: what forward needs; `remembered`: what the first round left in memory.
    """

    key: tuple[Hashable, ...]
    arrays: Arrays
    params: Mapping[str, Any] = field(default_factory=dict)
    remembered: Any = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What forward made of one Work: becomes a Result.

    `probabilities`: float32 [classes]. `wants`: bitmap of patches asked for. `remember`: kept in
    the session's memory under the query's id for a second round (`size` bytes), or None.
    `onward`: a cloud would do better; the answer stands where there is none, or TIER is "edge".
    """

    probabilities: npt.NDArray[np.float32]
    wants: bytes | None = None
    remember: Any = None
    size: int = 0
    degraded: str | None = None
    onward: bool = False


class Memory(Protocol):
    """What a session remembers of its frames between rounds: bounded, expiring."""

    def recall(self, id: int) -> Any:
        """What round one left under its query's id, once. Raises Refused("forgotten")."""
        ...


class Strategy(Protocol):
    """One way to serve a query."""

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check one query. Raises Refused("bad" | "forgotten", ...) or PassOn."""
        ...

    def forward(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """Run works of one key on the accelerator; one Outcome each, in order."""
        ...

    def warm(self) -> None:
        """Run every shape once, so that the first query is not slow."""
        ...
