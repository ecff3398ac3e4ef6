"""The link estimate: server time and latency must not read as low bandwidth."""

from __future__ import annotations

import pytest

from device.link import MEMORY, TRANSFERS, Link


def test_nothing_is_claimed_before_anything_was_seen() -> None:
    link = Link()
    assert link.rtt(0.0) is None
    assert link.throughput(0.0) is None


def exchange(size: int, rate: float, rtt: float, server: float) -> tuple[int, float, float]:
    return size, rtt + size / rate + server, server


@pytest.mark.parametrize("rtt", [0.0, 0.002, 0.04, 0.2])
@pytest.mark.parametrize("server", [0.0, 0.08])
def test_latency_and_server_time_are_taken_out(rtt: float, server: float) -> None:
    link, rate = Link(), 1e6
    link.record(0.0, *exchange(300, rate, rtt, 0.0))
    for second in range(20):
        link.record(float(second), *exchange(50_000, rate, rtt, server))
    assert link.throughput(20.0) == pytest.approx(rate, rel=0.05)
    assert link.rtt(20.0) == pytest.approx(rtt + 300 / rate, abs=1e-4)


def test_the_mean_is_harmonic_over_the_last_ten() -> None:
    link = Link()
    for _ in range(50):
        link.record(0.0, 1_000_000, 100.0)
    for seconds in [1.0, 4.0] * (TRANSFERS // 2):
        link.record(0.0, 1_000_000, seconds)
    assert link.throughput(0.0) == pytest.approx(1e6 / 2.5)


def test_small_exchanges_tell_no_throughput() -> None:
    link = Link()
    link.record(0.0, 400, 0.5)
    assert link.throughput(0.0) is None
    assert link.rtt(0.0) == 0.5


def test_a_round_trip_is_forgotten_and_never_above_a_transfer() -> None:
    link = Link()
    link.record(0.0, 200, 0.01)
    link.record(50.0, 200, 0.08)
    assert link.rtt(50.0) == 0.01
    assert link.rtt(MEMORY + 1.0) == 0.08
    link.record(51.0, 100_000, 0.03)
    assert link.rtt(MEMORY + 1.0) == 0.03
    assert link.rtt(200.0) is None


def test_an_instant_transfer_claims_no_rate() -> None:
    link = Link()
    link.record(0.0, 100_000, 0.001, 0.002)
    assert link.throughput(0.0) is None


def test_the_programs_own_time_does_not_read_as_a_slow_link() -> None:
    """6 kB on a link of 37 Mbps: 1.3 ms, beside 3 ms that the two programs take."""
    link, rate, own = Link(), 4.7e6, 0.003
    for second in range(TRANSFERS):
        size, net, _ = exchange(6_000, rate, 0.002, 0.0)
        link.record(float(second), size, net + own, rtt=0.002)
    assert link.throughput(9.0) is None
    link.record(10.0, 6_000, 0.5, rtt=0.002)  # one that was held up tells no more
    assert link.throughput(10.0) is None
    for second in range(11, 14):
        size, net, _ = exchange(120_000, rate, 0.002, 0.0)
        link.record(float(second), size, net + own, rtt=0.002)
    assert link.throughput(14.0) == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize("rtt", [0.002, 0.3])
def test_the_kernel_knows_the_round_trip(rtt: float) -> None:
    """Even where every exchange is a transfer, latency does not read as low bandwidth."""
    link, rate = Link(), 1e6
    for second in range(TRANSFERS):
        link.record(float(second), *exchange(50_000, rate, rtt, 0.05), rtt=rtt)
    assert link.rtt(20.0) == rtt
    assert link.throughput(20.0) == pytest.approx(rate)
    assert link.rtt(MEMORY + 20.0) is None


def test_the_kernel_goes_before_small_exchanges() -> None:
    link = Link()
    link.record(0.0, 400, 0.5, rtt=0.3)
    assert link.rtt(0.0) == 0.3
