"""Links that do not change: right answers in time, the estimate of the link, and the limit."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import pytest

from tests.netem import ground
from tests.netem.cases import STEADY, right, timely
from tests.netem.conftest import COUNT, DEADLINE, HEADS, TABLES, USUAL, Reference, Rows
from tests.netem.net import Shape
from tests.netem.world import World

FRAMES = {"1mbps": 11, "5g": COUNT, "wifi": COUNT}
TRIES = 5
"""How often a link is measured before it counts as too far from the truth: the machine may have
had other work at that moment. The worst is told."""
NEAR = 0.2
"""How far the estimate may be from the truth."""
TELLS = 28.0
"""Milliseconds of the link that a strategy's exchanges must take for its estimate of the rate to
be asked for; what is claimed of shorter ones must be as near."""
LIMIT = 1.1
"""How far above the limit the latency of one round may be."""
MOST = 10.0
"""Milliseconds of a round that processes may take to wake each other up. More is no emulation's
doing: somebody sleeps."""
SEGMENT, HEAD = 1448, 66
"""Bytes of ours in a full packet; of Ethernet, IP and TCP before them."""
OPENING = 3
"""Frames that open TCP's window."""
TITLE = (
    f"latency against the limit: bytes / bandwidth + round trip + compute + hops, medians in ms; "
    f"at most {LIMIT:g} where there is one round, in one of {TRIES} measurements"
)
HEADS[TITLE] = (
    f"{'link':<8}{'strategy':<10}{'rounds':>7}{'bytes up':>10}{'compute':>9}{'hops':>6}"
    f"{'limit':>9}{'p50':>9}{'ratio':>7}{'worst':>7}{'Mbps seen':>11}{'rtt seen':>10}"
)


@pytest.mark.parametrize("link", STEADY)
def test_steady(link: str, strategy: str, here: World, open_link: Reference) -> None:
    shape = STEADY[link]
    count = FRAMES.get(link, USUAL)
    here.net.shape(shape)
    worst = 0.0
    # The kernel may count a thread's CPU time in whole ticks of 10 ms: only the mean of many frames
    # says something. What a device computes does not depend on the link.
    computing = [row["device_ms"] for row in open_link[strategy][OPENING:]]
    hop = switch(open_link) if ground.emulated() else 0.0
    for _ in range(TRIES):
        rows = here.stored(strategy, count, deadline_ms=DEADLINE)
        assert len(rows) == count
        for row in rows:
            assert row["error"] is None, row
            assert row["degraded"] is None, row
        right(rows, open_link[strategy], {})
        timely(rows, DEADLINE)
        if not any(row["rounds"] for row in rows):
            return
        computing += [row["device_ms"] for row in rows[OPENING:]]
        seen = Measured.of(shape, rows, statistics.fmean(computing), hop)
        worst = max(worst, seen.ratio)
        trouble = seen.too_late() + misjudged(shape, rows)
        if not trouble:
            break
    TABLES[TITLE].append(f"{link:<8}{strategy:<10}{seen.line(worst)}")
    assert not trouble, "; ".join(trouble)


def wire(shape: Shape, row: dict[str, Any]) -> float:
    """Milliseconds that a frame's packets take on the link, heads included: netem counts them."""
    sent = sum(
        count + HEAD * math.ceil(count / SEGMENT) for count in (row["bytes_up"], row["bytes_down"])
    )
    return sent * 8.0 / (shape.rate * 1000.0)


def switch(reference: Reference) -> float:
    """Milliseconds that a round's processes take to wake each other up: an emulated CPU's own cost.

    It takes about 2 ms where a real one takes 0.6, whichever strategy asks. One strategy's frames
    alone do not tell: what they compute comes in whole ticks.
    """
    return max(0.0, statistics.median(between(rows) for rows in reference.values() if asked(rows)))


def asked(rows: Rows) -> bool:
    """Whether the frames went to a server at all."""
    return any(row["rounds"] for row in rows[OPENING:])


def between(rows: Rows) -> float:
    """Milliseconds of a round over an open link that neither side computes, by these frames."""
    warm = rows[OPENING:]
    device_ms = statistics.fmean(row["device_ms"] for row in warm)
    hops = statistics.median(row["latency_ms"] - row["server_ms"] for row in warm) - device_ms
    hop = hops / statistics.fmean(row["rounds"] for row in warm)
    assert hop < MOST, f"{hop:.1f} ms of a round go by between device and server"
    return hop


def misjudged(shape: Shape, rows: Rows) -> list[str]:
    """What the device believes of the link and is wrong by more than NEAR."""
    last = rows[-1]
    rtt, mbps = last["link_rtt_ms"], last["link_mbps"]
    trouble = []
    if rtt is None or abs(rtt / shape.rtt - 1.0) > NEAR:
        trouble.append(f"a round trip of {rtt} ms is believed, {shape.rtt} is true")
    if mbps is None:
        telling = statistics.fmean(wire(shape, row) / row["rounds"] for row in rows)
        if telling >= TELLS:
            trouble.append(f"the rate is not known after exchanges of {telling:.0f} ms")
    elif abs(mbps / shape.rate - 1.0) > NEAR:
        trouble.append(f"{mbps} Mbps are believed, {shape.rate} are true")
    return trouble


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a strategy on a link. Medians over its frames, milliseconds."""

    rounds: float
    bytes_up: float
    compute: float
    limit: float
    hops: float
    p50: float
    ratio: float
    mbps: float | None
    rtt: float | None

    @classmethod
    def of(cls, shape: Shape, rows: Rows, device_ms: float, hop: float) -> Measured:
        """The frames after those that open TCP's window.

        `device_ms`: what the device computes for each. `hop`: what the emulation adds to a round.
        """
        warm = rows[OPENING:]
        computes = [device_ms + row["server_ms"] for row in warm]
        limits = [
            wire(shape, row) + row["rounds"] * (shape.rtt + hop) + compute
            for row, compute in zip(warm, computes, strict=True)
        ]
        latencies = [row["latency_ms"] for row in warm]
        return cls(
            statistics.fmean(row["rounds"] for row in warm),
            statistics.fmean(row["bytes_up"] for row in warm),
            statistics.median(computes),
            statistics.median(limits),
            hop * statistics.fmean(row["rounds"] for row in warm),
            statistics.median(latencies),
            statistics.median(t / limit for t, limit in zip(latencies, limits, strict=True)),
            rows[-1]["link_mbps"],
            rows[-1]["link_rtt_ms"],
        )

    def too_late(self) -> list[str]:
        """Whether one round takes longer than the limit allows."""
        if self.rounds > 1.0 or self.ratio <= LIMIT:
            return []
        return [f"{self.p50:.1f} ms is {self.ratio:.2f} of the limit, {self.limit:.1f} ms"]

    def line(self, worst: float) -> str:
        """This as a line of the table."""
        mbps = "unknown" if self.mbps is None else f"{self.mbps:.2f}"
        return (
            f"{self.rounds:>7.2f}{self.bytes_up:>10.0f}{self.compute:>9.1f}{self.hops:>6.1f}"
            f"{self.limit:>9.1f}{self.p50:>9.1f}{self.ratio:>7.2f}{worst:>7.2f}"
            f"{mbps:>11}{self.rtt or 0:>10.1f}"
        )
