"""What all sessions of one server share."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.profile import Profile
from common.wire import DEFAULT, Limits
from server.executor import Executor
from server.memory import MemoryLimits
from server.metrics import Metrics
from server.relay import Relay

if TYPE_CHECKING:
    from server.session import Session

log = logging.getLogger("offboard.session")


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file a device may fetch: its bytes and their sha256, hexadecimal."""

    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device is told of the profile, and the bundle it may fetch.

    `bundle`: path -> file, "" being the manifest. Held in memory, so that a profile directory
    replaced under a running server cannot change what a digest stands for.
    """

    profile: str
    digest: str
    strategies: tuple[str, ...]
    bundle: Mapping[str, BundleFile] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, strategies: Iterable[str]) -> Offer:
        """The offer of `profile`, served by `strategies`."""
        manifest = profile.manifest.to_bytes()
        bundle = {"": BundleFile(manifest, hashlib.sha256(manifest).hexdigest())}
        for file in profile.manifest.files:
            bundle[file.path] = BundleFile(profile.read(file.path), file.sha256)
        digest = profile.manifest.digest
        return cls(profile.name, digest, tuple(sorted(strategies)), bundle)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one server and each of its sessions may hold.

    `sessions`: devices at a time. `strangers`: connections that have not authenticated yet.
    `credits`: queries and fetches one device may have outstanding.
    """

    sessions: int = 256
    strangers: int = 64
    credits: int = 32
    memory: MemoryLimits = field(default_factory=MemoryLimits)


def wire_limits(profile: Profile) -> Limits:
    """What one packet may hold: a raw frame of twice the input's sides, and never under 4 MiB.

    Hundreds of queries may wait, each with its packet, so the protocol's own 64 MiB is too much.
    """
    shape = profile.manifest.input
    body = max(4 << 20, 4 * shape.height * shape.width * shape.channels)
    return Limits(body=body, decoded=body)


@dataclass(slots=True)
class Service:
    """One server's state. `token` "": every device is welcome. `wire`: limits once let in.

    `relay`: the way to the cloud, if this server is an edge.
    """

    offer: Offer
    executor: Executor
    metrics: Metrics
    limits: SessionLimits = field(default_factory=SessionLimits)
    token: str = ""
    wire: Limits = DEFAULT
    relay: Relay | None = None
    draining: bool = False
    sessions: set[Session] = field(default_factory=set)
    """Devices that have authenticated."""
    strangers: set[Session] = field(default_factory=set)
    """Connections that have not."""
    _warned: float = 0.0

    def admits(self, token: str) -> bool:
        """Whether `token` is the right one, compared in constant time."""
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())

    def note_wrong_token(self, peer: str, now: float) -> None:
        """Count a wrong token; log at most one a second, since anybody can send them."""
        self.metrics.wrong_tokens += 1
        if now - self._warned >= 1.0:
            self._warned = now
            log.warning("peer=%s wrong token, %d so far", peer, self.metrics.wrong_tokens)

    @property
    def memory_bytes(self) -> int:
        """Bytes remembered between rounds, all sessions together."""
        return sum(session.memory.bytes for session in self.sessions)
