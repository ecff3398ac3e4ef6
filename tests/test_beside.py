"""What the device does beside a try: it comes out, or fails, or ends early."""

from __future__ import annotations

import threading
from threading import Event

import pytest

from device.beside import Beside, Steps


@pytest.mark.parametrize("delay", [0.0, 3600.0, None])
def test_what_comes_out_is_there_when_it_is_asked_for(delay: float | None) -> None:
    """Whether or not it was due."""
    assert Beside(lambda steps: list(steps([1, 2, 3])), delay).result() == [1, 2, 3]


def test_it_begins_by_itself_when_it_is_due() -> None:
    begun = Event()
    beside = Beside(lambda _: begun.set(), 0.01)
    assert begun.wait(10)
    beside.stop()


@pytest.mark.parametrize("delay", [3600.0, None])
def test_what_nobody_waits_for_any_longer_does_not_begin(delay: float | None) -> None:
    begun = Event()
    before = set(threading.enumerate())
    beside = Beside(lambda _: begun.set(), delay)
    beside.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert not begun.is_set()


def test_it_ends_after_the_step_under_way_once_nobody_waits() -> None:
    begun, on = Event(), Event()
    done: list[int] = []

    def work(steps: Steps) -> int:
        for step in steps([1, 2, 3]):
            done.append(step)
            begun.set()
            on.wait(10)
        return len(done)

    beside = Beside(work, 0.0)
    assert begun.wait(10)
    beside.stop()
    on.set()
    assert beside.result() == 1
    assert done == [1]


def test_what_it_raises_is_raised_where_it_is_asked_for() -> None:
    def work(steps: Steps) -> None:
        raise ValueError(f"no {next(iter(steps([7])))}")

    with pytest.raises(ValueError, match="no 7"):
        Beside(work, 0.0).result()
