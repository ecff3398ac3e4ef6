"""The batcher: loses nothing, mixes nothing, holds nothing past its time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.batcher import LANES, PATIENCE, Batcher, Estimate


@dataclass(eq=False)
class Item:
    """A work as the batcher sees it."""

    key: Hashable = "k"
    deadline: float = inf
    arrived: float = 0.0
    source: Hashable = "one"
    cancelled: bool = False


class Machine(RuleBasedStateMachine):
    """Any history of arrivals, cancels, waits and forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.batcher: Batcher[Item] = Batcher(max_wait=0.05, max_batch=3)
        self.waiting: list[Item] = []
        self.gone: list[Item] = []

    @rule(
        key=st.sampled_from("abc"),
        source=st.integers(0, 2),
        left=st.one_of(st.just(inf), st.floats(0.0, 0.3)),
    )
    def add(self, key: str, source: int, left: float) -> None:
        item = Item(key, self.now + left, self.now, source)
        self.waiting.append(item)
        self.batcher.add(item)

    @rule(seconds=st.floats(0.0, 0.2))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).cancelled = True

    @rule(key=st.sampled_from("abc"), n=st.integers(1, 3), seconds=st.floats(0.0, 0.1))
    def forward_ends(self, key: str, n: int, seconds: float) -> None:
        self.batcher.observe(key, n, seconds, self.now)

    @rule()
    def take(self) -> None:
        self.check(*self.batcher.take(self.now))

    @precondition(lambda self: self.batcher.wake() is not None)
    @rule()
    def sleep_until_wake(self) -> None:
        """Whoever sleeps as told finds something to do, before anybody's time is over."""
        wake = self.batcher.wake()
        assert wake is not None
        for item in self.waiting:
            assert wake <= max(self.now, item.arrived + self.batcher.max_wait)
            assert wake <= item.deadline
        self.now = max(self.now, wake)
        batch, dropped = self.batcher.take(self.now)
        assert batch or dropped
        self.check(batch, dropped)

    def check(self, batch: list[Item], dropped: list[Item]) -> None:
        for item in batch + dropped:  # each was waiting, and comes out once
            self.waiting.remove(item)
        self.gone += batch + dropped
        assert len(batch) <= self.batcher.max_batch
        assert len({item.key for item in batch}) <= 1
        for item in batch:
            assert not item.cancelled
            assert item.deadline > self.now
        for item in dropped:
            hopeless = item.deadline < self.now + self.batcher.predicted(item.key, 1)
            assert item.cancelled or item.deadline <= self.now or hopeless
        if batch:
            left = [due(item) for item in self.waiting if item.key == batch[0].key]
            assert max(map(due, batch)) <= min(left, default=inf)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        assert (self.batcher.wake() is None) == (not self.waiting)

    def teardown(self) -> None:
        assert set(map(id, self.batcher.clear())) == set(map(id, self.waiting))
        assert len(self.batcher) == 0


def due(item: Item) -> float:
    return min(item.deadline, item.arrived + PATIENCE)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def taken(batcher: Batcher[Item], now: float) -> list[Item]:
    batch, dropped = batcher.take(now)
    assert not dropped
    return batch


def test_a_lone_query_never_waits() -> None:
    batcher: Batcher[Item] = Batcher(max_wait=1.0)
    for step in range(5):
        item = Item(arrived=float(step))
        batcher.add(item)
        assert taken(batcher, float(step)) == [item]


def test_one_source_is_no_company_for_itself() -> None:
    batcher: Batcher[Item] = Batcher(max_wait=1.0)
    for step in range(20):
        batcher.add(Item(arrived=step * 0.001))
        assert taken(batcher, step * 0.001)


def in_step(batcher: Batcher[Item], rounds: int = 8) -> float:
    """Two sources that ask 1 ms apart, ten times a second."""
    now = 0.0
    for step in range(rounds):
        for source, at in (("one", step * 0.1), ("two", step * 0.1 + 0.001)):
            batcher.add(Item(arrived=at, source=source))
            now = at
        while len(batcher):
            now += 1.0
            batcher.take(now)
    return rounds * 0.1


def test_it_waits_for_company_that_usually_comes() -> None:
    batcher: Batcher[Item] = Batcher(max_wait=0.005)
    start = in_step(batcher)
    first = Item(arrived=start, source="one")
    batcher.add(first)
    assert taken(batcher, start) == []
    assert batcher.wake() == pytest.approx(start + 0.005)
    second = Item(arrived=start + 0.001, source="two")
    batcher.add(second)
    assert taken(batcher, start + 0.005) == [first, second]


def test_a_tight_deadline_ends_the_wait() -> None:
    batcher: Batcher[Item] = Batcher(max_wait=0.005)
    start = in_step(batcher)
    batcher.observe("k", 1, 0.004, start)
    batcher.add(Item(arrived=start, deadline=start + 0.006))
    assert batcher.wake() == pytest.approx(start + 0.002)
    assert taken(batcher, start) == []
    assert taken(batcher, start + 0.002)


def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[Item] = Batcher(max_wait=0.005, max_batch=2)
    start = in_step(batcher)
    for _ in range(3):
        batcher.add(Item(arrived=start))
    assert len(taken(batcher, start)) == 2


def test_earliest_deadline_first_within_and_between_keys() -> None:
    batcher: Batcher[Item] = Batcher(max_batch=2)
    items = [Item(key, left) for key, left in (("a", 0.5), ("a", 0.3), ("a", 0.4), ("b", 0.2))]
    for item in items:
        batcher.add(item)
    assert taken(batcher, 0.0) == [items[3]]
    assert taken(batcher, 0.0) == [items[1], items[2]]
    assert taken(batcher, 0.0) == [items[0]]


def test_what_has_no_deadline_is_not_starved() -> None:
    """A flood with deadlines, as much as the accelerator can do, and one work that can wait."""
    batcher: Batcher[Item] = Batcher(max_batch=1)
    patient = Item("patient")
    batcher.add(patient)
    now = 0.0
    while now < 3 * PATIENCE:
        batcher.add(Item("flood", now + 0.2, now))
        if taken(batcher, now) == [patient]:
            break
        now += 0.01
    assert now == pytest.approx(PATIENCE, abs=0.25)


def test_late_and_cancelled_work_is_dropped() -> None:
    batcher: Batcher[Item] = Batcher()
    late, cancelled, live = Item(deadline=1.0), Item(cancelled=True), Item()
    for item in (late, cancelled, live):
        batcher.add(item)
    batch, dropped = batcher.take(1.0)
    assert batch == [live]
    assert set(map(id, dropped)) == {id(late), id(cancelled)}


def test_hopeless_work_is_dropped_but_an_old_estimate_is_not_trusted() -> None:
    batcher: Batcher[Item] = Batcher()
    batcher.observe("k", 1, 0.1, now=0.0)
    hopeless = Item(deadline=0.05)
    batcher.add(hopeless)
    assert batcher.take(0.0) == ([], [hopeless])
    again = Item(deadline=2.05, arrived=2.0)
    batcher.add(again)
    assert taken(batcher, 2.0) == [again]


def test_a_batch_grows_only_while_all_of_it_ends_in_time() -> None:
    batcher: Batcher[Item] = Batcher()
    for n in (1, 2, 4, 8):
        batcher.observe("k", n, 0.01 + 0.01 * n, now=0.0)
    urgent = Item(deadline=0.045)
    others = [Item(deadline=5.0) for _ in range(8)]
    for item in (urgent, *others):
        batcher.add(item)
    assert batcher.predicted("k", 3) == pytest.approx(0.04)
    assert len(taken(batcher, 0.0)) == 3
    assert len(taken(batcher, 0.0)) == 6


def test_estimates_fit_a_line_and_follow_the_machine() -> None:
    estimate = Estimate()
    assert estimate.seconds(4) == 0.0
    estimate.observe(2, 0.02, 0.0)
    assert estimate.seconds(4) == pytest.approx(0.04)  # nothing says that batching gains
    for n in (1, 2, 4, 8) * 4:
        estimate.observe(n, 0.005 + 0.002 * n, 0.0)
    assert estimate.seconds(16) == pytest.approx(0.037, rel=0.1)
    for n in (1, 2, 4, 8) * 10:
        estimate.observe(n, 0.010 + 0.004 * n, 0.0)
    assert estimate.seconds(16) == pytest.approx(0.074, rel=0.1)
    assert estimate.one == estimate.seconds(1)


def test_keys_that_come_and_go_leave_nothing_behind() -> None:
    batcher: Batcher[Item] = Batcher()
    for key in range(LANES * 3):
        batcher.add(Item(key))
        assert len(taken(batcher, 0.0)) == 1
    assert len(batcher._lanes) <= LANES


@pytest.mark.parametrize("wrong", [{"max_wait": -1.0}, {"max_batch": 0}])
def test_wrong_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_"):
        Batcher(**wrong)  # type: ignore[arg-type]
