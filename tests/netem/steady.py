"""Links that do not change: right answers in time, the estimate of the link, and the limit."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from tests.netem.cases import ROUGH, STEADY, right, timely
from tests.netem.conftest import TABLES
from tests.netem.net import Shape
from tests.netem.world import World

Reference = dict[str, list[dict[str, Any]]]
FRAMES = {"1mbps": 8}
USUAL = 14
DEADLINE = 8000.0
NEAR = 0.2
"""How far the estimate may be from the truth."""
BESIDE = 0.1
"""How much of a transfer's time the processes may take for its throughput to be told."""
CLOCK = 2.0
"""Milliseconds that a kernel with other work adds to a round trip."""
LIMIT = "latency against the limit: bytes / bandwidth + round trip + compute, medians in ms"
TABLES[LIMIT] = [
    f"{'link':<8}{'strategy':<10}{'rounds':>7}{'bytes up':>10}{'limit':>9}{'p50':>9}{'ratio':>7}"
    f"{'Mbps seen':>11}{'rtt seen':>10}"
]


@pytest.mark.parametrize("link", STEADY)
def test_steady(link: str, strategy: str, here: World, open_link: Reference) -> None:
    shape = STEADY[link]
    count = FRAMES.get(link, USUAL)
    here.net.shape(shape)
    rows = here.stored(strategy, count, deadline_ms=DEADLINE)
    assert len(rows) == count
    right(rows, open_link[strategy], open_link.get("local", []))
    timely(rows, DEADLINE)
    for row in rows:
        assert row["error"] is None, row
        assert row["degraded"] is None, row
    if any(row["rounds"] for row in rows):
        note(link, strategy, rows)
        estimated(shape, rows)


@pytest.mark.parametrize("link", ROUGH)
def test_rough(link: str, strategy: str, here: World, open_link: Reference) -> None:
    here.net.shape(ROUGH[link])
    rows = here.stored(strategy, USUAL, deadline_ms=DEADLINE)
    assert len(rows) == USUAL
    right(rows, open_link[strategy], open_link.get("local", []))
    timely(rows, DEADLINE)


def estimated(shape: Shape, rows: list[dict[str, Any]]) -> None:
    """The device knows the link: latency is not taken for low bandwidth."""
    last = rows[-1]
    assert abs(last["link_rtt_ms"] - shape.rtt) <= NEAR * shape.rtt + CLOCK, last
    carried, beside = 0.0, 0.0
    for row in rows[-10:]:
        wire = (row["bytes_up"] + row["bytes_down"]) * 8.0 / (shape.rate * 1000.0)
        carried += wire
        beside += row["latency_ms"] - row["server_ms"] - row["rounds"] * shape.rtt - wire
    # Headers take a twentieth. What is more is the processes' time on a busy machine, and a
    # transfer that is short beside it tells of them rather than of the link.
    if beside <= (0.05 + BESIDE) * carried:
        assert abs(last["link_mbps"] / shape.rate - 1.0) <= NEAR, last


def note(link: str, strategy: str, rows: list[dict[str, Any]]) -> None:
    """Put a row into the table of limits."""
    shape = STEADY[link]
    warm = rows[3:]  # the first frames open TCP's window
    # A thread's CPU time may be counted in whole ticks of 10 ms: only its mean says something.
    device_ms = statistics.fmean(row["device_ms"] for row in warm)
    limits, latencies = [], []
    for row in warm:
        bits = (row["bytes_up"] + row["bytes_down"]) * 8.0
        wire = bits / (shape.rate * 1000.0) + row["rounds"] * shape.rtt
        limits.append(wire + device_ms + row["server_ms"])
        latencies.append(row["latency_ms"])
    ratio = statistics.median(t / limit for t, limit in zip(latencies, limits, strict=True))
    TABLES[LIMIT].append(
        f"{link:<8}{strategy:<10}{statistics.fmean(r['rounds'] for r in warm):>7.2f}"
        f"{statistics.fmean(r['bytes_up'] for r in warm):>10.0f}{statistics.median(limits):>9.1f}"
        f"{statistics.median(latencies):>9.1f}{ratio:>7.2f}"
        f"{rows[-1]['link_mbps'] or 0:>11.2f}{rows[-1]['link_rtt_ms'] or 0:>10.1f}"
    )
