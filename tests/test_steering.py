"""From frame to frame: what the scheduler is told, and what is done when the link fails it."""

from __future__ import annotations

import math

import pytest

from device.machine import Machine
from device.scheduler import Coding, Costs, Decision, Scheduler, Shape, costs
from device.steering import ARRIVED, DOUBLE, SLACK, Steering

DEVICE = Machine((1, 33, 65), (0.5, 12.0, 25.0), (0.1, 0.2, 0.4), first=3.0, last=1.0)
SERVER = Machine((1, 33, 65), (0.2, 0.6, 1.2), first=0.3, last=0.1)
FRAME = Coding("jpeg", fixed=20_000.0, ms=0.5)
PRIOR = 1000.0
RTT = 10.0
ENOUGH = 200.0
"""A requirement of which the device alone takes most, merging nothing."""


@pytest.fixture
def table() -> Costs:
    return costs(Shape(8, 65), DEVICE, SERVER, (Coding("int8", 200.0, 20.0),), (FRAME,))


@pytest.fixture
def steering(table: Costs) -> Steering:
    return Steering(table, PRIOR)


def alone(chosen: Decision) -> bool:
    return chosen.split == 9


def test_it_begins_with_the_profiled_link(steering: Steering, table: Costs) -> None:
    assert steering.decide(0.0, ENOUGH, RTT) == Scheduler(table, steering.slack).decide(
        PRIOR, ENOUGH, RTT
    )


def test_the_next_transfer_is_expected_to_be_as_the_last(steering: Steering) -> None:
    steering.answered(10.0, 5000.0, 1.0)
    fast = steering.decide(11.0, ENOUGH, RTT)
    assert (fast.split, fast.link_ms) == (0, pytest.approx(RTT + 20_000 / 5000))
    steering.answered(20.0, 50.0, 10.0)
    assert alone(steering.decide(21.0, ENOUGH, RTT))


def test_a_slow_link_is_tried_again_after_a_while(steering: Steering) -> None:
    """And soon no more if it stays slow."""
    steering.answered(0.0, 10.0, 10.0)
    assert alone(steering.decide(1.0, ENOUGH, RTT))
    tried = steering.decide(20 * DOUBLE, ENOUGH, RTT)
    assert tried.split == 0
    steering.gave_up(20 * DOUBLE, 20_000.0, 1e5)
    assert alone(steering.decide(20 * DOUBLE + 1.0, ENOUGH, RTT))


def test_waiting_leaves_the_device_the_time_it_needs(steering: Steering) -> None:
    """Its own answer is there when the requirement is over, which the server has until then."""
    for requirement in (150.0, 200.0, 400.0):
        chosen = steering.decide(0.0, requirement, RTT)
        begins = steering.begins(chosen, requirement)
        assert chosen.device_ms <= begins
        _, rest = steering.finishing(chosen, requirement - begins)
        assert begins + rest <= requirement + 1e-6
        assert steering.waits(chosen, requirement) == requirement


def test_without_a_requirement_the_device_waits_for_ever(steering: Steering) -> None:
    chosen = steering.decide(0.0, math.inf, RTT)
    assert steering.begins(chosen, math.inf) == steering.waits(chosen, math.inf) == math.inf


def test_what_leaves_no_time_must_hold_at_the_slowest_of_the_last(table: Costs) -> None:
    """A transfer that takes nearly all the requirement is not hoped for after one was slow."""
    steering = Steering(table, PRIOR, slack=1e-9)
    requirement = 150.0
    steering.answered(0.0, 170.0, 1.0)
    hoped = steering.decide(0.0, requirement, RTT)
    assert hoped.split < 9
    assert steering.begins(hoped, requirement) == steering.waits(hoped, requirement) == requirement
    wary = Steering(table, PRIOR, slack=1e-9)
    wary.answered(0.0, 20.0, 1.0)
    wary.answered(0.0, 170.0, 1.0)
    assert alone(wary.decide(0.0, requirement, RTT))


def test_a_frame_that_was_sent_is_begun_anew_as_the_scheduler_would(
    steering: Steering, table: Costs
) -> None:
    sent = steering.decide(0.0, ENOUGH, RTT)
    assert sent.split == 0
    for left in (60.0, 120.0, 1000.0):
        chosen = Scheduler(table, steering.slack).decide(0.0, left, RTT)
        assert steering.finishing(sent, left) == (chosen.at[0], pytest.approx(chosen.device_ms))
    steering.slack = 0.0
    times = [steering.finishing(sent, left) for left in (60.0, 120.0, 1000.0)]
    assert [alpha for alpha, _ in times] == sorted((alpha for alpha, _ in times), reverse=True)
    assert times[-1] == (0, pytest.approx(table.device[0, 9, 0]))
    assert all(
        ms <= left
        for (_, ms), left in zip(times, (60.0, 120.0, 1000.0), strict=True)
        if ms > table.device[-1, 9, 0]
    )


def test_behind_a_layer_the_device_goes_on_where_it_stopped(
    steering: Steering, table: Costs
) -> None:
    at = (3, 4, 0)
    chosen = Decision(table.alphas[3], 4, "int8", 0.0, 0.0, 0.0, True, at)
    alpha, rest = steering.finishing(chosen, 10.0)
    assert alpha == 3
    assert rest == pytest.approx(table.device[3, 9, 0] - table.device[at])


def test_a_try_after_a_failure_costs_no_time(steering: Steering, table: Costs) -> None:
    """The device answers beside it, for as long as nothing came back."""
    assert not steering.decide(0.0, ENOUGH, RTT).beside
    steering.gave_up(0.0, 20_000.0, 100.0)
    later = 10 * DOUBLE
    tried = steering.decide(later, ENOUGH, RTT)
    assert (tried.split, tried.beside) == (0, True)
    _, own = steering.finishing(tried, ENOUGH - tried.device_ms)
    assert steering.begins(tried, ENOUGH) == tried.device_ms
    assert steering.waits(tried, ENOUGH) == pytest.approx(tried.device_ms + own)
    assert tried.total_ms <= tried.device_ms + own
    steering.answered(later, 20_000.0, 20.0)
    assert not steering.decide(later, ENOUGH, RTT).beside


def test_what_the_device_answers_sooner_is_not_tried() -> None:
    """Nor does it merge more than it must, then."""
    coding = Coding("int8", 200.0, 20.0)
    ends = costs(Shape(8, 65), DEVICE, SERVER, (coding,), (FRAME,), splits=(0, 9))
    scheduler = Scheduler(ends, SLACK)
    requirement = 0.8 * ends.device[0, 1, 0]
    own = scheduler.decide(0.0, requirement, RTT)
    rate = 20_000.0 / (requirement - RTT - 10.0)
    later = scheduler.decide(rate, requirement, RTT)
    assert (later.split, own.total_ms < later.total_ms) == (0, True)
    steering = Steering(ends, PRIOR)
    steering.gave_up(0.0, rate / ARRIVED, 1.0)
    assert steering.decide(0.0, requirement, RTT) == own


def test_a_try_leaves_the_device_an_answer_in_time(table: Costs) -> None:
    """Behind a layer it cannot merge more than it began with."""
    steering = Steering(table, PRIOR)
    whole = table.device[0, 9, 0]
    for requirement in (0.6 * whole, 0.8 * whole, 1.2 * whole, 10 * whole):
        for rate in (50.0, 150.0, 300.0, 600.0, 2000.0):
            steering.gave_up(0.0, rate, 1.0)
            chosen = steering.decide(1.0, requirement, RTT)
            assert chosen.beside == (not alone(chosen))
            if chosen.beside:
                assert steering.waits(chosen, requirement) <= requirement + 1e-9


def test_a_loaded_device_and_a_slow_server_are_seen(steering: Steering) -> None:
    for _ in range(5):
        steering.ran(10.0, 25.0)
        steering.served(4.0, 2.0, 7.0)
    assert (steering.load, steering.speed, steering.queue) == (2.5, 0.5, 7.0)
    chosen = steering.decide(0.0, math.inf, RTT)
    assert chosen.device_ms == pytest.approx(FRAME.ms * 2.5)
    assert chosen.server_ms == pytest.approx(7.0 + 0.5 * steering.costs.server[chosen.at[:2]])


def test_one_slow_run_is_no_load(steering: Steering) -> None:
    for took in (400.0, 10.0, 10.0, 400.0, 10.0):
        steering.ran(10.0, took)
        assert steering.load == 1.0
