"""Janus's scheduler: the paper's algorithm, ours against it and against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.merging import alpha_max, fixed, grid, remaining, schedule
from device.machine import Machine
from device.scheduler import Coding, Costs, Scheduler, Shape, algorithm1, costs, split_points

SHAPE = Shape(8, 65)
DEVICE = Machine((1, 33, 65), (0.5, 8.0, 20.0), (0.1, 0.2, 0.4), first=3.0, last=1.0)
SERVER = Machine((1, 33, 65), (0.2, 0.6, 1.2), (0.0, 0.0, 0.0), first=0.3, last=0.1)
EXACT = Coding("fp32", 800.0, 20.0)
SMALL = Coding("int8", 200.0, 20.0, ms=0.05, loss=0.02)
FINE = Coding("q90", fixed=30_000.0, ms=0.5)
COARSE = Coding("q50", fixed=26_000.0, ms=0.4, loss=0.01)
PLAIN = Coding("raw", fixed=30_000.0)

RATES = st.floats(0.0, 5000.0)
REQUIREMENTS = st.floats(1.0, 400.0)


def tables(lines: bool = False, codings: tuple[Coding, ...] = (EXACT, SMALL)) -> Costs:
    splits = split_points(SHAPE.layers) if lines else None
    frames = (PLAIN,) if lines else (FINE, COARSE)
    return costs(SHAPE, DEVICE, SERVER, codings, frames, splits=splits, lines=lines)


def one_by_one() -> list[tuple[float, float, float, float, int]]:
    """(device ms, server ms, bytes, loss, split) of each; every layer is looked up by itself."""
    found = []
    for alpha in grid(8, 65):
        merges = schedule(alpha, 8, 65)
        tokens = remaining(merges, 65)
        here = [float(DEVICE.layer(n, r)) for n, r in zip(tokens, merges, strict=False)]
        there = [float(SERVER.layer(n, r)) for n, r in zip(tokens, merges, strict=False)]
        for split, (coding, frame) in itertools.product(
            range(10), ((EXACT, FINE), (SMALL, COARSE))
        ):
            device, server = sum(here[:split]), sum(there[split:])
            device += DEVICE.first if split else 0.0
            device += DEVICE.last if split == 9 else 0.0
            server += (0.0 if split == 9 else SERVER.last) + (0.0 if split else SERVER.first)
            left = tokens[min(split, 8)]
            size = frame.fixed if split == 0 else coding.fixed + coding.token * left
            device += 0.0 if split == 9 else coding.ms * left if split else frame.ms
            loss = 1 - float(np.mean(tokens[:-1])) / 65
            loss += 0.0 if split == 9 else coding.loss if split else frame.loss
            found.append((device, server, size, loss, split))
    return found


ONE_BY_ONE = one_by_one()


def test_split_points_are_fine_in_front_and_coarse_behind() -> None:
    """Fig. 4's model, 12 layers with k = 3; and ViT-L with the paper's k = 5."""
    assert split_points(12, 3) == (0, 1, 2, 3, 4, 6, 8, 10, 13)
    assert split_points(24, 5) == (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 19, 22, 25)


@pytest.mark.parametrize("layers", [1, 2, 12, 24])
@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_both_ends_are_always_split_points(layers: int, k: int) -> None:
    points = split_points(layers, k)
    assert (*points[:2], points[-1]) == (0, 1, layers + 1)
    gaps = [b - a for a, b in itertools.pairwise(points[1:-1])]
    assert gaps == sorted(gaps)
    if k >= layers:
        assert points == tuple(range(layers + 2))


@settings(max_examples=150, deadline=None)
@given(rate=st.floats(0.1, 5000.0), requirement=REQUIREMENTS, rtt=st.floats(0.0, 60.0))
def test_ours_decides_as_the_paper_on_its_grid(rate: float, requirement: float, rtt: float) -> None:
    theirs = algorithm1(SHAPE, DEVICE, SERVER, EXACT, PLAIN, rate, requirement, rtt)
    ours = Scheduler(tables(lines=True, codings=(EXACT,))).decide(rate, requirement, rtt)
    assert ours.meets == theirs.meets
    if ours.meets:
        # Two alphas whose schedules are the same merge the same: the first is the paper's.
        assert schedule(ours.alpha, 8, 65) == schedule(theirs.alpha, 8, 65)
        assert ours.total_ms == pytest.approx(theirs.total_ms)
    else:
        assert ours.total_ms <= theirs.total_ms + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    rate=RATES,
    requirement=REQUIREMENTS,
    rtt=st.floats(0.0, 60.0),
    load=st.floats(0.5, 4.0),
    speed=st.floats(0.5, 4.0),
    queue=st.floats(0.0, 100.0),
)
def test_ours_is_the_best_of_all_configurations(
    rate: float, requirement: float, rtt: float, load: float, speed: float, queue: float
) -> None:
    tried = []
    for device, server, size, loss, split in ONE_BY_ONE:
        away = split < 9
        link = (size / rate if rate > 1e-9 else math.inf) + rtt if away else 0.0
        tried.append((device * load + link + server * speed + (queue if away else 0.0), loss))
    found = Scheduler(tables()).decide(rate, requirement, rtt, load, speed, queue)
    enough = [each for each in tried if each[0] <= requirement]
    assert found.meets == bool(enough)
    if enough:
        least = min(loss for _, loss in enough)
        best = min(total for total, loss in enough if loss <= least + 1e-9)
    else:
        best = min(total for total, _ in tried)
    assert found.total_ms == pytest.approx(best)
    assert found.meets == (found.total_ms <= requirement)


@settings(max_examples=60, deadline=None)
@given(rate=RATES, more=st.floats(1.0, 10.0), requirement=REQUIREMENTS)
def test_a_faster_link_or_a_laxer_requirement_never_costs_accuracy(
    rate: float, more: float, requirement: float
) -> None:
    scheduler = Scheduler(tables())

    def merged(rate: float, requirement: float) -> float:
        decided = scheduler.decide(rate, requirement)
        if not decided.meets:
            return math.inf
        tokens = remaining(schedule(decided.alpha, 8, 65), 65)
        coded = {"int8": 0.02, "q50": 0.01}.get(decided.coding or "", 0.0)
        return 1 - float(np.mean(tokens[:-1])) / 65 + coded

    assert merged(rate * more, requirement) <= merged(rate, requirement) + 1e-9
    assert merged(rate, requirement * more) <= merged(rate, requirement) + 1e-9


def test_without_a_requirement_nothing_is_merged() -> None:
    decided = Scheduler(tables()).decide(100.0, math.inf)
    assert (decided.alpha, decided.meets) == (0.0, True)


def test_a_fast_link_sends_the_frame_and_a_silent_one_nothing() -> None:
    scheduler = Scheduler(tables())
    fast = scheduler.decide(1e6, 50.0)
    assert (fast.split, fast.coding, fast.device_ms) == (0, "q90", FINE.ms)
    silent = scheduler.decide(0.0, 60.0, rtt=40.0)
    assert (silent.split, silent.coding, silent.link_ms, silent.server_ms) == (9, None, 0.0, 0.0)


def test_what_no_configuration_meets_is_done_as_fast_as_can_be() -> None:
    """The paper: alpha_max with its fastest split."""
    for decided in (
        Scheduler(tables()).decide(0.0, 1.0),
        algorithm1(SHAPE, DEVICE, SERVER, EXACT, PLAIN, 0.01, 1.0),
    ):
        assert not decided.meets
        assert decided.alpha == alpha_max(8, 65)
        assert decided.split == 9


def test_load_drives_work_to_the_server_and_a_queue_back_to_the_device() -> None:
    scheduler = Scheduler(tables())
    assert scheduler.decide(300.0, 70.0, rtt=5.0).split > 0
    assert scheduler.decide(300.0, 120.0, rtt=5.0, load=20.0).split == 0
    assert scheduler.decide(1e6, 60.0).split == 0
    assert scheduler.decide(1e6, 60.0, queue=500.0).split == 9
    assert scheduler.decide(1e6, 60.0, speed=50.0).split == 9


def test_a_cheaper_coding_is_taken_only_where_it_is_needed() -> None:
    """Its loss is one of accuracy, next to merging less."""
    scheduler = Scheduler(tables())
    rates = np.geomspace(20, 5000, 200)
    used = [scheduler.decide(rate, 70.0, rtt=2.0).coding for rate in rates]
    assert used[0] is None
    assert used[-1] == "q90"
    assert {"int8", "q50"} <= set(used)
    free = tables(codings=(EXACT, Coding("fp16", 400.0, 20.0)))
    for rate in rates:
        assert Scheduler(free).decide(rate, 70.0).coding != "fp32"


def test_slack_gives_accuracy_for_time() -> None:
    """Of what is within it of the best, the fastest."""
    exact, lax = Scheduler(tables()), Scheduler(tables(), slack=0.3)
    table = exact.costs
    for rate in (100.0, 400.0, 4000.0):
        first, second = exact.decide(rate, 120.0), lax.decide(rate, 120.0)
        assert second.total_ms <= first.total_ms
        assert table.loss[second.at] <= table.loss[first.at] + 0.3
    assert lax.decide(400.0, 120.0).total_ms < exact.decide(400.0, 120.0).total_ms


def test_other_schedules_may_be_given() -> None:
    """Neurosurgeon's best split with ToMe's fixed r."""
    table = costs(
        SHAPE, DEVICE, SERVER, (EXACT,), (PLAIN,), merges=[(0.0, fixed(3, 8, 65))], lines=True
    )
    assert table.device.shape == (1, 10, 1)
    tokens = remaining(fixed(3, 8, 65), 65)
    assert table.device[0, 2, 0] == pytest.approx(
        3.0 + DEVICE.line(tokens[0]) + DEVICE.line(tokens[1])
    )
    assert table.size[0, 2, 0] == pytest.approx(20 + 800 * tokens[2])
    totals = table.device[:, :, 0] + table.server + table.size[:, :, 0] / 100 + 4 * table.remote
    assert Scheduler(table).decide(100, 0.1, rtt=4).total_ms == pytest.approx(totals.min())
