"""A device that works on its own answer while it waits for the server's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
Steps = Callable[[Iterable[int]], Iterable[int]]


def every(steps: Iterable[int]) -> Iterable[int]:
    """All of them: what is not done beside anything."""
    return steps


class Beside(Generic[T]):
    """Does `work` in a thread of its own. It is given what it has to go through its steps with:
    they end early once nobody waits for what comes out."""

    def __init__(self, work: Callable[[Steps], T]) -> None:
        self._work = work
        self._made: Future[T] = Future()
        self._stop = Event()
        # No daemon: a program must not end within a step, and waits no longer than that.
        Thread(target=self._run, name="beside").start()

    def result(self) -> T:
        """What came out, when it is there. Raises what `work` raised."""
        return self._made.result()

    def stop(self) -> None:
        """Nobody waits any longer: the step under way is the last."""
        self._stop.set()

    def _run(self) -> None:
        try:
            self._made.set_result(self._work(self._wanted))
        except Exception as error:
            self._made.set_exception(error)

    def _wanted(self, steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            if self._stop.is_set():
                return
            yield step
