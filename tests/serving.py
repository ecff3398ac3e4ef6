"""A server in this process with strategies made of plain functions: no torch, no profile."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.codec import encode
from common.messages import Query
from common.wire import DEFAULT, Limits
from server.executor import Executor
from server.listener import Listener
from server.metrics import Metrics
from server.service import BundleFile, Offer, Service, SessionLimits
from server.strategy import Memory, Outcome, Strategy, Work

WAIT = 10.0
"""Seconds after which a test that waits has failed."""


@dataclass
class Scripted:
    """A strategy that answers [value, batch size] of "x" uint8 [1], unless told otherwise.

    `hold`: forwards wait for it. `poison`: a batch with this value raises. Step "remember" leaves
    the value in memory, step "recall" answers what it finds there.
    """

    poison: int | None = None
    hold: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    forwards: list[list[int]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    on_prepare: Callable[[Query], None] = lambda query: None
    warmed: int = 0

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Key by "group"."""
        self.threads.add(threading.current_thread().name)
        self.on_prepare(query)
        value = memory.recall(query.memory) if query.step == "recall" else query.tensors["x"].data
        key = ("scripted", query.params.get("group", 0))
        return Work(key, {"x": np.frombuffer(bytes(value), np.uint8)}, {"step": query.step})

    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """One outcome each."""
        values = [int(work.arrays["x"][0]) for work in works]
        self.forwards.append(values)
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        if self.hold is not None:
            assert self.hold.wait(WAIT)
        if self.poison in values:
            raise RuntimeError(f"poison among {values}")
        return [self._outcome(work, len(works)) for work in works]

    def warm(self) -> None:
        """Counted."""
        self.warmed += 1

    def _outcome(self, work: Work, size: int) -> Outcome:
        value = work.arrays["x"]
        row = np.array([value[0], size], np.float32)
        if work.params["step"] != "remember":
            return Outcome(row)
        return Outcome(row, wants=b"\x01", remember=value.tobytes(), size=value.nbytes)


def query(value: int = 1, step: str = "whole", memory: int = 0, **params: Any) -> Query:
    """A query for `Scripted`, served as strategy "scripted"."""
    x = encode(np.array([value], np.uint8))
    return Query("scripted", step, params=params, tensors={"x": x}, memory=memory)


@dataclass
class Running:
    """What `running` yields."""

    service: Service
    listener: Listener

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.listener.port


def _file(data: bytes) -> BundleFile:
    return BundleFile(data, hashlib.sha256(data).hexdigest())


BUNDLE = {
    "": _file(b'{"tiny":1}'),
    "device/empty": _file(b""),
    "device/model": _file(bytes(range(256)) * 3000),
}


@asynccontextmanager
async def running(
    strategies: Mapping[str, Strategy],
    *,
    limits: SessionLimits | None = None,
    token: str = "",
    bundle: Mapping[str, BundleFile] = BUNDLE,
    wire: Limits = DEFAULT,
    **executor: Any,
) -> AsyncIterator[Running]:
    """A server on a free loopback port, drained at the end. `executor`: Executor's arguments."""
    metrics = Metrics()
    runner = Executor(strategies, metrics=metrics, **executor)
    offer = Offer("scripted", "d" * 64, tuple(sorted(strategies)), bundle)
    service = Service(offer, runner, metrics, limits or SessionLimits(), token, wire)
    await runner.start()
    listener = await Listener.open(service, "127.0.0.1", 0)
    try:
        yield Running(service, listener)
    finally:
        await listener.close("the test is over", grace=1.0)
        await runner.stop(grace=5.0)


async def soon(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, where nothing tells of it."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
