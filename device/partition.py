"""Where to cut the model: the offloading point of least predicted latency. Pure.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.4.2 and 4.2, equation 14:

    argmin over points p of  t_device(p) + t_server(p) + d(p) / B

B is the harmonic mean of the last ten transfers (`device.link`). Until there were any that tell,
it is what profiled links have, as far as the exchanges seen do not rule that out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from device.link import Estimate

LINKS: Mapping[str, tuple[float, float]] = {
    "4G": (7.6, 42.2),
    "5G": (14.7, 17.05),
    "Wi-Fi": (37.68, 2.3),
}
"""Profiled links: Mbps and milliseconds of a round trip. A profile may bring its own."""


@dataclass(frozen=True, slots=True)
class Point:
    """What an offloading point costs: seconds on the device and on the server, bytes sent."""

    device: float
    server: float
    size: float

    def latency(self, throughput: float, rtt: float = 0.0) -> float:
        """Equation 14's sum in seconds, and the round trip that any point takes."""
        return self.device + self.server + self.size / throughput + rtt


def prior(links: Iterable[Sequence[float]]) -> Estimate:
    """The mean of links (Mbps, ms): the harmonic one of throughputs, as of transfers."""
    rates, trips = zip(*links, strict=True)
    return Estimate(statistics.harmonic_mean(rates) * 125e3, statistics.fmean(trips) / 1000.0)


def throughput(link: Estimate, cold: Estimate) -> float:
    """Bytes per second to plan with: those measured, else `cold`'s within what was seen."""
    if link.throughput is not None:
        return link.throughput
    assert cold.throughput is not None
    return min(max(cold.throughput, link.least), link.most)


def choose(points: Sequence[Point], link: Estimate, cold: Estimate) -> int:
    """The index of the point of least latency; of equal ones the first."""
    rate = throughput(link, cold)
    return min(range(len(points)), key=lambda p: points[p].latency(rate))


def points(measured: Mapping[str, Sequence[float]]) -> tuple[Point, ...]:
    """The points of a profile's `measured`: {"device_ms": [...], "server_ms": ..., "bytes": ...}.

    Raises ConfigError if that is not one number per point.
    """
    try:
        rows = zip(*(measured[key] for key in ("device_ms", "server_ms", "bytes")), strict=True)
        made = tuple(Point(float(d) / 1e3, float(s) / 1e3, float(size)) for d, s, size in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"measured offloading points: {error!r}: ./run measure again") from None
    if not made:
        raise ConfigError("no offloading point was measured: ./run measure PROFILE")
    return made


def cold_start(params: Mapping[str, Any]) -> Estimate:
    """The prior of a strategy's parameter `links` {name: [Mbps, ms]}, or of LINKS."""
    links: Mapping[str, Sequence[float]] = params.get("links") or LINKS
    try:
        return prior(links.values())
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"links are {{name: [Mbps, ms of a round trip]}}: {error}") from None
