"""Runs one rival's server or client in this process, told what to do over stdin and stdout.

python -m bench.rivals.harness NAME serve           prints the port, answers until killed
python -m bench.rivals.harness NAME drive PORT      per line "size concurrency seconds" on
                                                    stdin, prints one Sample as JSON
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Protocol

REPLY = 200
"""Bytes of payload that come down."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One burst: round trips, the seconds they took, the CPU seconds of the client, latencies."""

    n: int
    seconds: float
    cpu: float
    p50_ms: float
    p95_ms: float


class Drive(Protocol):
    """The client of one rival."""

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """Ask for `seconds` with `concurrency` in flight; the latency of each round trip (s)."""
        ...


Ask = Callable[[bytes], Awaitable[object]]


class AsyncDrive:
    """Drives a rival whose round trip is one await; connections are kept between bursts.

    `connect(port)` opens one connection and returns its `ask`.
    """

    def __init__(
        self,
        port: int,
        connect: Callable[[int], Awaitable[Ask]],
        loop: asyncio.AbstractEventLoop,
        shared: bool = False,
    ) -> None:
        self._port, self._connect, self._loop, self._shared = port, connect, loop, shared
        self._asks: list[Ask] = []

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """See Drive."""
        return self._loop.run_until_complete(self._run(size, concurrency, seconds))

    async def _run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        payload = os.urandom(size)
        while len(self._asks) < (1 if self._shared else concurrency):
            self._asks.append(await self._connect(self._port))
        times: list[float] = []
        end = time.perf_counter() + seconds

        async def one(ask: Ask) -> None:
            now = time.perf_counter()
            while now < end:
                began = now
                await ask(payload)
                now = time.perf_counter()
                times.append(now - began)

        await asyncio.gather(*(one(self._asks[i % len(self._asks)]) for i in range(concurrency)))
        return times


def ready(port: int) -> None:
    """Tell the bench where the server listens."""
    print(port, flush=True)


def uvloop_loop() -> asyncio.AbstractEventLoop:
    """A uvloop event loop, made current."""
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def _drive(name: str, port: int) -> None:
    drive: Drive = importlib.import_module(f"bench.rivals.{name}").drive(port)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        size, concurrency, seconds = line.split()
        cpu, began = time.process_time(), time.perf_counter()
        times = drive.run(int(size), int(concurrency), float(seconds))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        times.sort()
        n = len(times)
        sample = Sample(n, took, cpu, times[n // 2] * 1e3, times[n * 95 // 100] * 1e3)
        print(json.dumps(asdict(sample)), flush=True)


def main() -> None:
    """See the module's docstring."""
    name, role, *rest = sys.argv[1:]
    if role == "serve":
        importlib.import_module(f"bench.rivals.{name}").serve()
    else:
        _drive(name, int(rest[0]))


if __name__ == "__main__":
    main()
