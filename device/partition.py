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
class Choice:
    """A point and a rate: seconds that it takes on the device and on the server, bytes sent."""

    point: str
    rate: int
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


def choose(choices: Sequence[Choice], link: Estimate, cold: Estimate) -> Choice:
    """The choice of least latency; of equal ones the first."""
    rate = throughput(link, cold)
    return min(choices, key=lambda choice: choice.latency(rate))


def choices(measured: Sequence[Mapping[str, Any]], rate: int) -> tuple[Choice, ...]:
    """Of each point that was measured the choice of number `rate`, or its dearest if it has fewer.

    `measured`: {"point", "rate", "device_ms", "server_ms", "bytes"} each. Raises ConfigError if
    there is none, or one that lacks something.
    """
    found: dict[str, Choice] = {}
    try:
        for row in sorted(measured, key=lambda row: int(row["rate"])):
            if int(row["rate"]) <= rate or row["point"] not in found:
                found[row["point"]] = Choice(
                    str(row["point"]), int(row["rate"]),
                    row["device_ms"] / 1e3, row["server_ms"] / 1e3, float(row["bytes"]),
                )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"measured offloading points: {error!r}: ./run measure again") from None
    if not found:
        raise ConfigError("no offloading point was measured: ./run measure PROFILE, or set a point")
    return tuple(found.values())


def cold_start(params: Mapping[str, Any]) -> Estimate:
    """The prior of a strategy's parameter `links` {name: [Mbps, ms]}, or of LINKS."""
    links: Mapping[str, Sequence[float]] = params.get("links") or LINKS
    try:
        return prior(links.values())
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"links are {{name: [Mbps, ms of a round trip]}}: {error}") from None
