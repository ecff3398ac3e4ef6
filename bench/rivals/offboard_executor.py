"""Offboard as the server runs it: session, batcher, executor thread, deadlines; an empty model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.rivals.harness import REPLY, ready, uvloop_loop
from bench.rivals.offboard import TIMING, CallbackDrive, drive
from common.codec import decode
from common.messages import Query
from server.executor import Executor
from server.listener import Listener
from server.metrics import Metrics
from server.service import Offer, Service
from server.strategy import Memory, Outcome, Work

LABEL = "offboard, uvloop, through session, batcher, executor thread and deadline"

__all__ = ["LABEL", "CallbackDrive", "drive", "serve"]

PROBABILITIES = np.zeros(REPLY // 4, np.float32)


class Empty:
    """A strategy that decodes what came and computes nothing."""

    def prepare(self, query: Query, memory: Memory) -> Work:
        """See server.strategy.Strategy."""
        return Work(("raw",), {"pixels": decode(query.tensors["pixels"])})

    def forward(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See server.strategy.Strategy."""
        return [Outcome(PROBABILITIES) for _ in works]

    def warm(self) -> None:
        """See server.strategy.Strategy."""


async def _serve() -> Any:
    metrics = Metrics()
    executor = Executor({"raw": Empty()}, metrics=metrics)
    await executor.start()
    service = Service(Offer("bench", "", ("raw",)), executor, metrics)
    return await Listener.open(service, "127.0.0.1", 0, timing=TIMING)


def serve() -> None:
    """See the package."""
    loop = uvloop_loop()
    ready(loop.run_until_complete(_serve()).port)
    loop.run_forever()
