"""Keeps the bundle in step with the server: at first contact, and whenever its profile changes.

What the chosen strategy needs is fetched before the first frame; the local model, for the day the
link dies, after the first answer, so that it delays none. Files of other strategies are left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from common.client import Client, Reply
from common.errors import ConfigError, OffboardError, ProtocolError, Refused, Unavailable
from common.messages import Query
from device.bundle import Bundle, Cache, fetch_files, fetch_manifest
from device.planner import LOCAL, Choice, Planner

log = logging.getLogger("offboard.device")

RETRY = 2.0
"""Seconds before what the server did not hand out is asked for again."""
QUIET = 5.0
"""Seconds after which the rest of the bundle is fetched even if no frame has been answered."""
FETCH_WAIT = 120.0
"""Seconds that what the chosen strategy needs may take to arrive before the first frame."""
Adopt = Callable[[Bundle, Planner], Awaitable[None]]


class Keeper:
    """Fetches bundles and hands each one that can be used to `adopt(bundle, planner)`.

    `completed()` is called when all files that this device needs of the adopted bundle are here.

    `server`: its address, under which the cache remembers the bundle. `trouble`: why there is no
    bundle for what the server now serves; None while all is well.
    """

    def __init__(
        self, client: Client, cache: Cache, server: str, choice: Choice, worker: Executor,
        adopt: Adopt, completed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.trouble: OffboardError | None = None
        self.answered = asyncio.Event()
        """Set by the owner when a frame has been answered."""
        self.complete = asyncio.Event()
        """Set while every file that this device needs of the server's bundle is in the cache."""
        self._client = client
        self._cache = cache
        self._server = server
        self._choice = choice
        self._worker = worker
        self._adopt = adopt
        self._completed = completed
        self._changed = asyncio.Event()
        self._bundle: Bundle | None = None
        self._strategy = LOCAL

    def link_changed(self) -> None:
        """The link came up: the server may serve something else now."""
        self._changed.set()

    async def first(self, patience: float) -> None:
        """Adopt the server's bundle, or after `patience` seconds the last one it served.

        Raises Refused or ConfigError where waiting would not help.
        """
        try:
            await self._client.wait_connected(patience)
            async with asyncio.timeout(FETCH_WAIT):
                await self._follow()
        except (Unavailable, ProtocolError, TimeoutError) as error:
            await self._fall_back(str(error) or f"no bundle within {FETCH_WAIT:g} s")
        except Refused as error:
            if not error.retryable:
                raise
            await self._fall_back(str(error))

    async def run(self) -> None:
        """Follow the server until cancelled."""
        while True:
            try:
                if self._client.connected:
                    await self._follow()
                    await self._fetch_rest()
            except OffboardError as error:
                self._note(error)
                if self._client.connected:
                    self._changed.set()
                    await asyncio.sleep(RETRY)
            await self._changed.wait()
            self._changed.clear()

    async def _fall_back(self, reason: str) -> None:
        bundle = await self._run(self._cache.last, self._server)
        if bundle is None:
            self.trouble = Unavailable(f"{reason}; no bundle of {self._server} is in the cache")
            log.warning("%s", self.trouble)
            return
        log.warning("%s; using the cached bundle of %r", reason, bundle.manifest.name)
        try:
            await self._use(bundle)
        except Unavailable as error:
            self.trouble = error
            log.warning("%s", error)

    async def _follow(self) -> None:
        """Adopt what the server serves now, unless that has been done."""
        welcome = self._client.welcome
        if welcome is None:
            raise Unavailable("the server has not said what it serves")
        digest = welcome.digest
        bundle = self._bundle
        if bundle is None or bundle.manifest.digest != digest:
            bundle = await self._run(self._cache.open, digest)
            if bundle is None:
                bundle = await self._run(
                    self._cache.add, await fetch_manifest(self._client, digest)
                )
            self.complete.clear()
            planner = Planner(bundle.manifest, self._choice)
            await self._fetch(bundle, bundle.needed(planner.strategy))
            await self._run(self._cache.remember, self._server, bundle)
            await self._use(bundle)
        self.trouble = None

    async def _fetch_rest(self) -> None:
        bundle = self._bundle
        missing = [] if bundle is None else bundle.missing(self._strategy, LOCAL)
        if bundle is not None and missing:
            try:
                async with asyncio.timeout(QUIET):
                    await self.answered.wait()
            except TimeoutError:
                log.debug("no frame yet: fetching the rest of the bundle")
            await self._fetch(bundle, missing)
            log.info("bundle %r is complete", bundle.manifest.name)
        if not self.complete.is_set():
            self.complete.set()
            await self._completed()

    async def _use(self, bundle: Bundle) -> None:
        planner = Planner(bundle.manifest, self._choice)
        await self._adopt(bundle, planner)
        self._bundle, self._strategy = bundle, planner.strategy

    async def _fetch(self, bundle: Bundle, files: list[Any]) -> None:
        await fetch_files(self._client, self._cache, bundle, files, self._run)

    def _note(self, error: OffboardError) -> None:
        if str(error) != str(self.trouble):
            log.warning("the bundle could not be had from the server: %s", error)
        if self._bundle is None or isinstance(error, ConfigError):
            self.trouble = error

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, partial(function, *arguments))


class Gate:
    """A client that speaks only to a server of one profile.

    A server may come back with another one; a frame sent there under the old one's classes would
    get a wrong label.
    """

    def __init__(self, client: Client, digest: str) -> None:
        self._client = client
        self._digest = digest

    @property
    def connected(self) -> bool:
        """Whether the server is there and serves this profile."""
        welcome = self._client.welcome
        return self._client.connected and welcome is not None and welcome.digest == self._digest

    @property
    def rtt(self) -> float | None:
        """As `Client.rtt`."""
        return self._client.rtt

    async def ask(self, query: Query, deadline: float | None = None) -> Reply:
        """As `Client.ask`; Unavailable if the server serves another profile by now."""
        if self._client.connected and not self.connected:
            raise Unavailable("the server serves another profile now")
        return await self._client.ask(query, deadline)

    async def wait_connected(self, timeout: float) -> None:
        """As `Client.wait_connected`; Unavailable if the server serves another profile by now."""
        await self._client.wait_connected(timeout)
        if not self.connected:
            raise Unavailable("the server serves another profile now")
