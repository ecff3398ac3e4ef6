"""The simulated link, to the bit, and what is replayed on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traces import Trace
from common.merging import fixed
from device.machine import Machine
from device.scheduler import Coding, Costs, Shape, costs
from profiles import replay as replaying
from profiles.replay import (
    Always,
    Harmonic,
    Oracle,
    Policy,
    Setting,
    Steered,
    Uplink,
    replay,
    undominated,
)

WIRE = 1.0 + replaying.HEADERS / replaying.SEGMENT
DEVICE = Machine((1, 33, 65), (0.5, 12.0, 25.0), (0.1, 0.2, 0.4), first=3.0, last=1.0)
SERVER = Machine((1, 33, 65), (0.2, 0.6, 1.2), first=0.3, last=0.1)
SHAPE = Shape(8, 65)
FRAME = Coding("jpeg", fixed=20_000.0, ms=0.5)
TOKENS = Coding("int8", 200.0, 20.0)
SETTING = Setting(rtt=20.0, requirement=150.0, prior=1000.0)


def table(merges: int | None = None) -> Costs:
    given = None if merges is None else [(0.0, fixed(merges, 8, 65))]
    return costs(SHAPE, DEVICE, SERVER, (TOKENS,), (FRAME,), merges=given)


def steps(*mbps: float, each: float = 100.0) -> Uplink:
    return Uplink([each * i for i in range(len(mbps) + 1)], mbps)


@given(
    mbps=st.lists(st.sampled_from([0.0, 0.3, 4.0, 90.0]), min_size=1, max_size=6).filter(any),
    start=st.floats(0, 2000),
    size=st.floats(1, 1e6),
)
def test_the_uplink_is_the_trace_of_the_benches(
    mbps: list[float], start: float, size: float
) -> None:
    """`bench.traces` walks it step by step, in seconds and bits."""
    trace = Trace(tuple(0.1 * i for i in range(len(mbps))), tuple(mbps), 0.1 * len(mbps))
    expected = trace.finish(start / 1e3, size * WIRE * 8) * 1e3
    assert float(steps(*mbps).finish(start, size)) == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_nothing_leaves_at_once_and_an_outage_holds_the_rest_up() -> None:
    uplink = steps(8.0, 0.0, 8.0)
    assert uplink.finish(30.0, 0.0) == 30.0
    assert uplink.finish(0.0, 50_000 / WIRE) == pytest.approx(50.0)
    assert uplink.finish(50.0, 100_000 / WIRE) == pytest.approx(250.0)
    # What ends as the outage begins has not waited for its end.
    assert uplink.finish(0.0, 100_000 / WIRE) == pytest.approx(100.0)
    found = uplink.finish(np.array([0.0, 50.0]), np.array([50_000, 100_000]) / WIRE)
    assert found == pytest.approx([50.0, 250.0])


def test_a_trace_that_carries_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        steps(0.0, 0.0)


def test_the_device_alone_needs_no_link() -> None:
    frames = replay(Always(table(3), 9), steps(0.0, 1.0, each=5000), SETTING)
    assert {frame.latency for frame in frames} == {table(3).device[0, 9, 0]}
    assert frames[1].start == frames[0].latency
    assert frames[-1].start < 10_000 <= frames[-1].start + frames[-1].latency


def test_the_cloud_alone_waits_an_outage_out() -> None:
    frames = replay(Always(table(3), 0), steps(8.0, 0.0, 8.0, each=1000), SETTING)
    sent = 0.5 + 20_000 * WIRE / 1000 + 20 + table(3).server[0, 0]
    assert frames[0].latency == pytest.approx(sent)
    worst = max(frame.latency for frame in frames)
    assert 1000 < worst < 1000 + 2 * sent
    assert sum(frame.latency > 150 for frame in frames) == 1


@pytest.mark.parametrize("mbps", [(0.1,), (3.0,), (100.0,), (50.0, 0.0, 0.5, 20.0)])
def test_no_policy_does_better_than_the_oracle_on_a_frame(mbps: tuple[float, ...]) -> None:
    """Where a steady link leaves nothing to know, ours does as well."""
    policies: dict[str, Policy] = {
        "oracle": Oracle(table()),
        "ours": Steered(table(), SETTING.prior),
        "paper": Harmonic(table()),
        "mixed": Harmonic(table(3), fastest=True),
    }
    violations = {}
    for name, policy in policies.items():
        frames = replay(policy, steps(*mbps, each=10_000), SETTING)
        violations[name] = sum(f.latency > 150 + 1e-9 for f in frames) / len(frames)
    assert violations["oracle"] == min(violations.values())
    if len(mbps) == 1:
        assert violations["ours"] <= violations["oracle"] + 0.05


EXACT_ORACLE = Oracle(table(), slack=1e-9)


@given(start=st.floats(0, 5000), requirement=st.floats(20, 400))
def test_the_oracle_is_the_best_of_everything(start: float, requirement: float) -> None:
    """Each configuration tried on the link."""
    costs, uplink = EXACT_ORACLE.costs, steps(2.0, 0.0, 40.0, 0.4)
    setting = Setting(20.0, requirement, 1000.0)
    chosen = EXACT_ORACLE.choose(start, uplink, setting)
    server = np.broadcast_to(costs.server[:, :, None], costs.size.shape)
    total = costs.device + server
    away = costs.remote > 0
    sent = uplink.finish(start + costs.device, costs.size) - start - costs.device + 20.0
    total = total + np.where(away[None, :, None], sent, 0.0)
    assert chosen.total_ms == pytest.approx(float(total[chosen.at]))
    assert chosen.meets == bool((total <= requirement).any())
    if chosen.meets:
        least = costs.loss[total <= requirement].min()
        same = (total <= requirement) & (costs.loss <= least + 1e-9)
        assert chosen.total_ms == pytest.approx(total[same].min())
    else:
        assert chosen.total_ms == pytest.approx(total.min())


def test_only_what_can_be_the_best_of_something_is_kept() -> None:
    columns = np.array([[1, 2, 3, 1, 2, 0], [3, 2, 1, 3, 3, 9]], float)
    assert undominated(columns).tolist() == [0, 1, 2, 5]


def test_what_was_given_up_is_finished_in_time_and_holds_up_the_link() -> None:
    """The link dies under a frame that was sent."""
    uplink = Uplink([0, 10, 2000, 4000], [8.0, 0.0, 8.0])
    frames = replay(Steered(table(), SETTING.prior), uplink, SETTING)
    first = frames[0]
    assert first.gave_up
    assert first.size == 20_000
    assert first.latency <= 150 + 1e-6
    assert first.server == 0
    quiet = [f for f in frames if f.start + f.latency < 2000]
    assert len(quiet) >= 12
    assert sum(f.latency > 150 + 1e-6 for f in quiet) <= 2
    assert any(f.server > 0 for f in frames if f.start > 2500)


def test_what_comes_late_but_before_the_devices_own_answer_is_taken() -> None:
    """The link slows down under a frame; the device has begun beside it."""
    setting = Setting(rtt=20.0, requirement=300.0, prior=1000.0)
    policy = Steered(table(), setting.prior)
    begins = policy.begins(policy.choose(0.0, steps(8.0), setting), setting)
    first = replay(policy, Uplink([0, 10, 4000], [8.0, 0.4]), setting)[0]
    assert begins < first.latency <= 300.0
    assert (first.gave_up, first.server > 0) == (False, True)


def test_after_a_failure_the_device_answers_beside_what_it_tries() -> None:
    """An outage violates nothing, and a try in it takes as long as the device alone."""
    uplink = steps(*[40.0] * 20, *[0.0] * 60, *[40.0] * 20)
    frames = replay(Steered(table(), SETTING.prior), uplink, SETTING)
    tries = [frame for frame in frames if frame.chosen.beside]
    failed = [frame for frame in tries if frame.gave_up]
    assert failed
    assert len(tries) > len(failed)
    for frame in failed:
        assert frame.latency == pytest.approx(frame.device)
        assert frame.latency <= SETTING.requirement + 1e-6


def test_prediction_and_time_agree_on_a_steady_link() -> None:
    for policy in (Oracle(table()), Steered(table(), SETTING.prior)):
        frames = replay(policy, steps(8.0, each=3000), SETTING)[2:]
        for frame in frames:
            assert frame.chosen.total_ms == pytest.approx(frame.latency, rel=0.03)


def test_the_harmonic_mean_sees_an_outage_pass() -> None:
    """By a monitor: else it would never send again."""
    frames = replay(Harmonic(table()), steps(100.0, 0.5, 100.0, each=20_000), SETTING)
    assert any(f.size == 0 for f in frames if 30_000 < f.start < 40_000)
    assert any(f.size > 0 for f in frames if f.start > 45_000)
    assert not math.isnan(sum(f.latency for f in frames))
