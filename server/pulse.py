"""Whether the executor gets on: what the watchdog is fed by, beside the event loop itself."""

from __future__ import annotations

from typing import Protocol


class Worker(Protocol):
    """What is looked at of `server.executor.Executor`."""

    pending: int
    turns: int


class Pulse:
    """Called now and then; false if queries waited through the time since, and nothing moved."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._turns = -1

    def __call__(self) -> bool:
        turns, before = self._worker.turns, self._turns
        self._turns = turns
        return self._worker.pending == 0 or turns != before
