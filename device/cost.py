"""What answering one frame costs the device: bytes, server time, its own CPU time."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Generator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from common.client import Reply
from device.strategy import Answer, Frame, Plan

T = TypeVar("T")


@dataclass(slots=True)
class Cost:
    """Sums over the rounds of one frame. Milliseconds, bytes of whole packets."""

    bytes_up: int = 0
    bytes_down: int = 0
    server_ms: float = 0.0
    device_ms: float = 0.0

    def add(self, reply: Reply) -> None:
        """One exchange that came back."""
        self.bytes_up += reply.bytes_up
        self.bytes_down += reply.bytes_down
        self.server_ms += reply.result.server_ms

    def stamp(self, answer: Answer, frame: Frame, plan: Plan, now: float) -> Answer:
        """`answer` with everything the pipeline knows of it. `now`: on `time.monotonic`."""
        latency = (now - frame.captured) * 1000.0
        in_time = plan.deadline_ms is None or latency <= plan.deadline_ms
        return replace(
            answer,
            frame=frame.name,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            latency_ms=latency,
            device_ms=self.device_ms,
            server_ms=self.server_ms,
            deadline_met=answer.label is not None and in_time,
        )


class Timed(Generic[T]):
    """Awaits `coroutine` and adds the CPU time of its steps to `cost`.

    Other frames take turns in the same thread, so only what runs between two suspensions counts.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], cost: Cost) -> None:
        self._coroutine = coroutine
        self._cost = cost

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._coroutine.__await__()
        sent: Any = None
        error: BaseException | None = None
        while True:
            started = time.thread_time()
            try:
                waits = steps.send(sent) if error is None else steps.throw(error)
            except StopIteration as stop:
                value: T = stop.value
                return value
            finally:
                self._cost.device_ms += (time.thread_time() - started) * 1000.0
            sent = error = None
            try:
                sent = yield waits
            except BaseException as problem:  # a cancellation is the coroutine's to see
                error = problem
