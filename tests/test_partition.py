"""DeepCOD's moving offloading point: equation 14 over what was measured and what the link shows."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from device.link import TRANSFERS, UNKNOWN, Estimate, Link
from device.partition import LINKS, Choice, choices, choose, cold_start, prior, throughput

MBPS = 125e3
COLD = prior(LINKS.values())
SECONDS = st.floats(0, 1)
EACH = st.builds(Choice, st.just("input"), st.just(1), SECONDS, SECONDS, st.floats(1, 1e6))
CHOICES = st.lists(EACH, min_size=1, max_size=6)


@given(CHOICES, st.floats(1e3, 1e9))
def test_it_is_the_argmin_of_equation_14(made: list[Choice], rate: float) -> None:
    sums = [p.device + p.server + p.size / rate for p in made]
    assert sums[made.index(choose(made, Estimate(rate, 0.01), COLD))] == min(sums)


@given(CHOICES, st.floats(1e3, 1e9), st.floats(1, 1e3))
def test_a_faster_link_never_means_fewer_bytes(
    made: list[Choice], rate: float, times: float
) -> None:
    slow, fast = (choose(made, Estimate(r), COLD) for r in (rate, rate * times))
    assert fast.size >= slow.size


def test_the_point_moves_with_the_link() -> None:
    made = [
        Choice("input", 1, 0.001, 0.012, 2000),
        Choice("block-2", 1, 0.006, 0.010, 600),
        Choice("block-4", 1, 0.015, 0.004, 150),
    ]
    found = [choose(made, Estimate(mbps * MBPS), COLD).point for mbps in (0.1, 0.5, 3.0, 40.0)]
    assert found == ["block-4", "block-4", "block-2", "input"]


def test_a_cold_start_plans_with_the_profiled_links() -> None:
    assert COLD.rtt == pytest.approx((42.2 + 17.05 + 2.3) / 3e3)
    rates = [mbps * MBPS for mbps, _ in LINKS.values()]
    assert COLD.throughput == pytest.approx(3 / sum(1 / rate for rate in rates))
    assert throughput(UNKNOWN, COLD) == COLD.throughput
    assert throughput(Estimate(5.0), COLD) == 5.0
    assert cold_start({"links": {"wire": [100, 0.2]}}).throughput == pytest.approx(100 * MBPS)
    assert cold_start({}) == COLD


def test_what_exchanges_rule_out_is_not_planned_with() -> None:
    slow, fast = Estimate(most=1 * MBPS), Estimate(least=90 * MBPS)
    assert throughput(slow, COLD) == 1 * MBPS
    assert throughput(fast, COLD) == 90 * MBPS
    between = Estimate(least=1 * MBPS, most=90 * MBPS)
    assert throughput(between, COLD) == COLD.throughput


@pytest.mark.parametrize("mbps", [0.3, 1.0, 8.0, 100.0])
def test_short_exchanges_bound_the_throughput(mbps: float) -> None:
    """1,200 bytes up and 200 down: too short to tell the throughput, but not to bound it."""
    link, rtt, own = Link(), 0.02, 0.002
    for second in range(TRANSFERS):
        link.record(float(second), 1400, rtt + own + 1400 / (mbps * MBPS), rtt=rtt)
    seen = link.estimate(9.0)
    assert seen.throughput is None
    assert seen.least <= mbps * MBPS <= seen.most
    if mbps <= 1.0:
        assert seen.most < 1.15 * mbps * MBPS
    else:
        assert seen.most > (COLD.throughput or 0)


def test_one_exchange_held_up_does_not_make_a_link_slow() -> None:
    link = Link()
    for second, late in enumerate((0.0, 0.4, 0.0)):
        link.record(float(second), 1400, 0.0225 + late, rtt=0.02)
    assert link.estimate(2.0).most == math.inf


def test_without_a_round_trip_there_is_no_upper_bound() -> None:
    link = Link()
    link.record(0.0, 3000, 0.1)
    assert link.rtt(0.0) is None
    assert link.estimate(0.0).most == math.inf
    assert Link().estimate(0.0) == UNKNOWN


def row(point: str, rate: int) -> dict[str, Any]:
    each = {"device_ms": 1, "server_ms": 12.0, "bytes": 1000 * rate}
    return {"point": point, "rate": rate, **each}


def test_each_point_stands_at_the_rate_asked_for_or_its_dearest() -> None:
    measured = [row("input", 2), row("input", 1), row("input", 3), row("block-1", 1)]
    found = choices(measured, 2)
    assert found[0] == Choice("input", 2, 0.001, 0.012, 2000.0)
    assert [(each.point, each.rate) for each in found] == [("input", 2), ("block-1", 1)]
    assert choices(measured[2:3], 1)[0].rate == 3


@pytest.mark.parametrize("wrong", [{"bytes": None}, {"device_ms": "?"}, {"rate": "x"}])
def test_what_was_measured_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="measure again"):
        choices([row("input", 1) | wrong], 1)


def test_nothing_measured_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"\./run measure PROFILE"):
        choices([], 1)


@pytest.mark.parametrize("links", [{"wire": 5}, [5], {"wire": [0, "x"]}])
def test_wrong_links_are_refused(links: Any) -> None:
    with pytest.raises(ConfigError, match="Mbps"):
        cold_start({"links": links})
