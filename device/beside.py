"""A device that works on its own answer while it still waits for the server's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
Steps = Callable[[Iterable[int]], Iterable[int]]


class Beside(Generic[T]):
    """Does `work` in a thread of its own, in `delay` seconds or when its result is asked for.

    It is given what it has to go through its steps with: they end early once nobody waits for what
    comes out. A `delay` of None: only when it is asked for.
    """

    def __init__(self, work: Callable[[Steps], T], delay: float | None) -> None:
        self._work, self._delay = work, delay
        self._made: Future[T] = Future()
        self._now, self._stop = Event(), Event()
        # No daemon: a program must not end within a step, and waits no longer than that.
        Thread(target=self._run, name="beside").start()

    def result(self) -> T:
        """What came out, when it is there. Raises what `work` raised."""
        self._now.set()
        return self._made.result()

    def stop(self) -> None:
        """Nobody waits any longer: the step under way is the last."""
        self._stop.set()
        self._now.set()

    def _run(self) -> None:
        self._now.wait(self._delay)
        if self._stop.is_set():
            return
        try:
            self._made.set_result(self._work(self._wanted))
        except Exception as error:
            self._made.set_exception(error)

    def _wanted(self, steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            if self._stop.is_set():
                return
            yield step
