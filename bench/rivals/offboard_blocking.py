"""Offboard's blocking client, one query at a time, against the callback server."""

from __future__ import annotations

import time

from bench.rivals.offboard import DEADLINE, query, serve
from common.blocking import BlockingClient

LABEL = "offboard, blocking client, uvloop server"

ONE_AT_A_TIME = True

__all__ = ["LABEL", "ONE_AT_A_TIME", "drive", "serve"]


class drive:
    """See the package."""

    def __init__(self, port: int) -> None:
        self._client = BlockingClient("127.0.0.1", port).__enter__()

    def run(self, size: int, concurrency: int, seconds: float) -> list[float]:
        """See Drive."""
        asked = query(size)
        times: list[float] = []
        now = time.perf_counter()
        end = now + seconds
        while now < end:
            began = now
            self._client.ask(asked, DEADLINE)
            now = time.perf_counter()
            times.append(now - began)
        return times
