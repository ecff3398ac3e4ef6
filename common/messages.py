"""What device and server say to each other: one frozen dataclass per message.

The id and the milliseconds left of a message travel in the packet's prefix, its other fields
in the msgpack head (derived from the dataclass), its tensors out of band behind the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

Scalar = None | bool | int | float | str | bytes
"""What `params` may hold, besides flat lists of the same."""

NO_DEADLINE = 0xFFFFFFFF
"""Milliseconds left of a message that may take for ever."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One coded array: `data` holds `shape` items of `dtype`, coded by `codec`.

    dtype: a numpy name out of `wire.DTYPES`. codec: a name of `codec.CODECS`; with "raw" the
    data are the array's C-order little-endian bytes.
    """

    data: bytes | bytearray | memoryview
    dtype: str
    shape: tuple[int, ...]
    codec: str = "raw"


Tensors = Mapping[str, Tensor]
Params = Mapping[str, Scalar | list[Scalar]]
NO_TENSORS: Tensors = {}
NO_PARAMS: Params = {}


@dataclass(frozen=True, slots=True)
class Hello:
    """First packet of a device. `token` authenticates; `accept` are protocol versions spoken."""

    KIND: ClassVar[int] = 1
    accept: tuple[int, ...]
    agent: str
    strategies: tuple[str, ...]
    packet_limit: int
    token: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's answer to Hello. `credits`: queries a device may have outstanding."""

    KIND: ClassVar[int] = 2
    version: int
    agent: str
    profile: str
    digest: str
    strategies: tuple[str, ...]
    packet_limit: int
    credits: int


@dataclass(frozen=True, slots=True)
class Query:
    """A device asks. Round two of a frame names round one's query in `memory` (its id).

    `via`: the servers that have passed the query on, so its length counts the hops. `ms_left`: a
    strategy sets it where it has something better to do than to wait longer.
    """

    KIND: ClassVar[int] = 3
    strategy: str
    step: str
    params: Params = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    memory: int = 0
    id: int = 0
    ms_left: int = NO_DEADLINE
    via: tuple[str, ...] = field(default=(), metadata={"optional": True})


@dataclass(frozen=True, slots=True)
class Result:
    """The server's answer to a Query; every first-round Result holds the provisional answer.

    tensors["probabilities"]: float32 [classes]. `wants`: bitmap of the patches asked for in a
    second round (see `patches.pack`), or None when the answer is final. `server_ms`: from the
    whole packet received to the reply written, of which `queue_ms` waiting for a batch.
    """

    KIND: ClassVar[int] = 4
    source: str
    tensors: Tensors = field(default_factory=dict)
    wants: bytes | None = None
    server_ms: float = 0.0
    queue_ms: float = 0.0
    degraded: str | None = None
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server declines one query; codes: expired, cancelled, busy, forgotten, unknown, bad,
    failed, draining, away, loop."""

    KIND: ClassVar[int] = 5
    code: str
    reason: str
    retryable: bool
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Cancel:
    """The device no longer waits for query `id`."""

    KIND: ClassVar[int] = 6
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Ping:
    """Sent only by an idle side; any byte in return proves life."""

    KIND: ClassVar[int] = 7
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers the Ping of the same id."""

    KIND: ClassVar[int] = 8
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Bye:
    """The last packet of a side, with a reason a person can read.

    code: "drain" (finish what is outstanding, then close), "protocol" (you broke the rules),
    "refused" (authentication or versions), "busy" (too many devices: come back later), "done".
    """

    KIND: ClassVar[int] = 9
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """A device asks for a file of its bundle; `path` "" asks for the bundle's manifest.

    Answered by Chunks of the same id, or a Refusal.
    """

    KIND: ClassVar[int] = 10
    path: str
    offset: int = 0
    id: int = 0
    ms_left: int = NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file: tensors["data"] uint8 [n] at `offset` of `total` bytes.

    `digest`: sha256 of the whole file, hexadecimal.
    """

    KIND: ClassVar[int] = 11
    offset: int
    total: int
    digest: str
    tensors: Tensors = field(default_factory=dict)
    id: int = 0
    ms_left: int = NO_DEADLINE


Message = Hello | Welcome | Query | Result | Refusal | Cancel | Ping | Pong | Bye | Fetch | Chunk
