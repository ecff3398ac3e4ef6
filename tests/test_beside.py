"""What the device does beside a try: it comes out, or fails, or ends early."""

from __future__ import annotations

from threading import Event

import pytest

from device.beside import Beside, Steps, every


def test_what_comes_out_is_there_when_it_is_asked_for() -> None:
    assert Beside(lambda steps: list(steps([1, 2, 3]))).result() == [1, 2, 3]
    assert list(every([1, 2])) == [1, 2]


def test_it_ends_after_the_step_under_way_once_nobody_waits() -> None:
    begun, on = Event(), Event()
    done: list[int] = []

    def work(steps: Steps) -> int:
        for step in steps([1, 2, 3]):
            done.append(step)
            begun.set()
            on.wait(10)
        return len(done)

    beside = Beside(work)
    assert begun.wait(10)
    beside.stop()
    on.set()
    assert beside.result() == 1
    assert done == [1]


def test_what_it_raises_is_raised_where_it_is_asked_for() -> None:
    def work(steps: Steps) -> None:
        raise ValueError(f"no {next(iter(steps([7])))}")

    with pytest.raises(ValueError, match="no 7"):
        Beside(work).result()
