"""Whether a client is connected, why not, and who wants to know. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from common.errors import OffboardError, Refused, Unavailable

log = logging.getLogger("offboard.client")


class Standing:
    """Where a client stands with `server` ("host:port").

    `on_state(connected, reason)` is called at each change of state.
    """

    def __init__(self, server: str, on_state: Callable[[bool, str], None] | None) -> None:
        self.trouble: OffboardError | None = Unavailable("not connected yet")
        """Why we are not connected; None: we are."""
        self._server = server
        self._on_state = on_state
        self._news = asyncio.Event()
        self._said = ""

    async def wait(self, timeout: float) -> None:
        """Wait until connected. Raises Refused if we are, Unavailable after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.trouble is not None:
                    if isinstance(self.trouble, Refused):
                        raise self.trouble
                    await self._news.wait()
        except TimeoutError:
            where = f"not connected to {self._server} within {timeout:g} s"
            raise Unavailable(f"{where}: {self.trouble}") from None

    def up(self, peer: str) -> None:
        """We are connected; `peer`: what the server says it is."""
        self.trouble = None
        self._say("connected", logging.INFO, f"connected to {self._server}: {peer}")

    def down(self, trouble: OffboardError) -> None:
        """We are not."""
        self.trouble = trouble
        # Silence or a server that is not there: to whoever waits that is the same state.
        kind = "Unavailable" if isinstance(trouble, Unavailable) else type(trouble).__name__
        doing = "refused by" if isinstance(trouble, Refused) else "not connected to"
        self._say(kind, logging.WARNING, str(trouble), f"{doing} {self._server}: %s; trying on")

    def _say(self, state: str, level: int, reason: str, line: str = "%s") -> None:
        """One log line, and word to those who wait, if that is a change."""
        if state == self._said:
            return
        self._said = state
        log.log(level, line, reason)
        news, self._news = self._news, asyncio.Event()
        news.set()
        if self._on_state is not None:
            self._on_state(self.trouble is None, reason)
