"""What the link can do, as the last exchanges showed it. Pure: `now` is an argument.

Throughput B is the harmonic mean of the last ten transfers, with the server's own time taken out
of the round trip (DeepCOD, section 4.4, eq. 14). Latency must not read as low bandwidth: the round
trip is taken out as well, the kernel's where it tells one, else the least of small exchanges.
Nor must the two programs' own time: next to it a short transfer tells nothing, so none is claimed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

TRANSFERS = 10
SMALL = 2048
"""Bytes, both ways, up to which an exchange tells the latency rather than the throughput."""
TELLING = 0.025
"""Seconds that a transfer must take, at the fastest rate seen, to tell the throughput: processes
and kernels at both ends take up to some 3 ms of an exchange, an eighth of this."""
MEMORY = 60.0
"""Seconds after which a round trip is forgotten: a device moves."""
OWN = 0.003
"""Seconds that processes and kernels at both ends take of an exchange."""
FASTEST = 1.25e9
"""Bytes per second beyond which no claim is made: the clock decides there, not the link."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a link; None: nothing yet.

    `throughput`: bytes per second. `rtt`: seconds of an empty round trip. Where exchanges are too
    short to tell the throughput, the fastest of them still bounds it: it moves `least` bytes per
    second or more, and `most` or less.
    """

    throughput: float | None = None
    rtt: float | None = None
    least: float = 0.0
    most: float = math.inf


UNKNOWN = Estimate()


@dataclass(slots=True)
class Link:
    """The estimate of one link."""

    _transfers: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=TRANSFERS))
    _trips: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=256))
    _exchanges: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=TRANSFERS))
    _kernel: tuple[float, float] | None = None

    def record(
        self,
        now: float,
        size: int,
        seconds: float,
        server_seconds: float = 0.0,
        rtt: float | None = None,
    ) -> None:
        """One exchange: `size` bytes both ways in `seconds`, of which the server took a part.

        `rtt`: seconds of the shortest round trip that the kernel has seen, if it tells.
        """
        if rtt is not None:
            self._kernel = (now, rtt)
        net = max(seconds - server_seconds, 1e-6)
        self._exchanges.append((size, net))
        if size <= SMALL:
            self._trips.append((now, net))
        else:
            self._transfers.append((size, net))

    def rtt(self, now: float) -> float | None:
        """Seconds of an empty round trip; None if neither the kernel nor a small exchange told.

        Of exchanges no more than the shortest transfer, which took at least one round trip too.
        """
        if self._kernel is not None and now - self._kernel[0] <= MEMORY:
            return self._kernel[1]
        recent = [net for at, net in self._trips if now - at <= MEMORY]
        if not recent:
            return None
        return min(recent + [net for _, net in self._transfers])

    def throughput(self, now: float) -> float | None:
        """Bytes per second; None while no transfer was long enough to tell.

        Without a small exchange the round trip counts as transfer time: an underestimate.
        """
        rtt = self.rtt(now) or 0.0
        spent = [(size, max(net - rtt, size / FASTEST)) for size, net in self._transfers]
        # By the fastest, not by its own time: a short transfer that was held up tells no more.
        fastest = max((size / seconds for size, seconds in spent), default=0.0)
        telling = [seconds / size for size, seconds in spent if size >= TELLING * fastest]
        return len(telling) / sum(telling) if telling else None

    def estimate(self, now: float) -> Estimate:
        """All of it; no `most` while the round trip is unknown, and so part of every exchange."""
        throughput, rtt = self.throughput(now), self.rtt(now)
        spent = [(size, net - (rtt or 0.0)) for size, net in self._exchanges]
        least = max((size / max(net, size / FASTEST) for size, net in spent), default=0.0)
        most = max(
            (size / (net - OWN) if net > OWN else math.inf for size, net in spent), default=0.0
        )
        return Estimate(throughput, rtt, least, most if rtt is not None and spent else math.inf)
