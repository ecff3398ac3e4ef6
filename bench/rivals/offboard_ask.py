"""Offboard with `await client.ask(...)`: a future for every round trip, as most programs use it."""

from __future__ import annotations

from bench.rivals.harness import Ask, AsyncDrive, uvloop_loop
from bench.rivals.offboard import DEADLINE, TIMING, query, serve
from common.client import Client, Reply

LABEL = "offboard, uvloop, await ask()"

__all__ = ["LABEL", "drive", "serve"]


async def _connect(port: int) -> Ask:
    client = await Client.connect("127.0.0.1", port, timing=TIMING).__aenter__()
    queries = {}

    async def ask(payload: bytes) -> Reply:
        size = len(payload)
        if size not in queries:
            queries[size] = query(size)
        return await client.ask(queries[size], DEADLINE)

    return ask


def drive(port: int) -> AsyncDrive:
    """See the package."""
    return AsyncDrive(port, _connect, uvloop_loop())
