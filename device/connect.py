"""Offboard in a program of one's own.

async with offboard_connect("192.168.1.20:7070", strategy="amot", deadline_ms=300) as offboard:
    answer = await offboard.infer("photo.jpg")       # or bytes, or uint8 [H, W, 3] RGB
    print(answer.label, answer.prob, answer.source, answer.degraded)

with offboard_connect_blocking("192.168.1.20:7070") as offboard:
    print(offboard.infer("photo.jpg").label)
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from common import registry
from common.client import Client
from common.errors import ConfigError, Unavailable
from device.bundle import Bundle, Cache, default_cache
from device.content import TEXT, Data
from device.feed import Feed
from device.keeper import Gate, Keeper
from device.link import Link
from device.pipeline import Pipeline, failed
from device.planner import STRATEGIES, Choice, Planner
from device.source import Shot, Source
from device.strategy import Answer, Pixels

log = logging.getLogger("offboard.device")

AGENT = "offboard-device"
PATIENCE = 5.0
T = TypeVar("T")


class Offboard:
    """A device's end of Offboard. Made by `offboard_connect`; used from one event loop."""

    def __init__(
        self, host: str, port: int, choice: Choice, *, token: str, cache: Path, patience: float
    ) -> None:
        self.link = Link()
        self.patience = patience
        self.dropped = 0
        self._address = f"{host}:{port}"
        self._pipeline: Pipeline | None = None
        self._adopted = asyncio.Event()
        self._deadline_ms = choice.deadline_ms
        self._since = time.monotonic()
        self._down = True
        self._index = 0
        self._stack = AsyncExitStack()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="offboard-worker")
        self._client = Client.connect(
            host,
            port,
            token=token,
            agent=AGENT,
            strategies=registry.names(STRATEGIES),
            wait=0,
            on_state=self._on_state,
        )
        self._keeper = Keeper(
            self._client,
            Cache(cache),
            self._address,
            choice,
            self._worker,
            self._adopt,
            self._completed,
        )

    async def __aenter__(self) -> Self:
        """Connect and get the bundle. Raises Refused or ConfigError where waiting cannot help.

        A server that is away is no error: frames are then answered as well as can be.
        """
        self._since = time.monotonic()
        self._stack.callback(self._worker.shutdown, wait=False, cancel_futures=True)
        try:
            await self._stack.enter_async_context(self._client)
            await self._keeper.first(self.patience)
        except BaseException:
            await self._stack.aclose()
            raise
        keeping = asyncio.create_task(self._keeper.run())
        self._stack.push_async_callback(_stop, keeping)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def complete(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the rest of the bundle, if the server is there.

        Then a later start without a server finds the local model in the cache.
        """
        self._keeper.answered.set()
        if self._client.connected:
            try:
                async with asyncio.timeout(timeout):
                    await self._keeper.complete.wait()
            except TimeoutError:
                log.warning("the bundle is not complete after %g s", timeout)

    async def infer(self, picture: str | Path | bytes | Pixels, name: str | None = None) -> Answer:
        """What is in `picture`: a file, an encoded picture, or uint8 [H, W, 3] RGB of any size.

        By a profile of text, a str is a sentence. Never raises for a picture or a link that is bad:
        see `Answer.error` and `.degraded`.
        """
        index, self._index = self._index, self._index + 1
        data: Data = Path(picture) if isinstance(picture, str) else picture
        if isinstance(picture, str) and self._task == TEXT:
            data, name = bytes(picture, "utf-8"), name or str(index)
        return await self._answer(Shot(index, name or _name(data, index), data))

    async def stream(self, source: Source, in_flight: int) -> AsyncGenerator[Answer, None]:
        """Answers to all of `source`: stored frames in order, live ones as they come.

        At most `in_flight` frames are under way; a stored source waits meanwhile, a live one
        keeps its newest shot. Raises ConfigError if the source fails.
        """
        feed = Feed(source)
        running: deque[asyncio.Task[Answer]] = deque()
        taking: asyncio.Task[Shot | None] | None = None
        ended = False
        try:
            while True:
                if taking is None and not ended and len(running) < self._width(in_flight):
                    taking = asyncio.create_task(_next(feed))
                ready = [task for task in running if task.done()]
                if ready and (source.live or running[0] is ready[0]):
                    running.remove(ready[0])
                    yield ready[0].result()
                    continue
                heads = running if source.live else list(running)[:1]
                waits: set[asyncio.Task[Any]] = {*heads} if taking is None else {*heads, taking}
                if not waits:
                    break
                await asyncio.wait(waits, return_when="FIRST_COMPLETED")
                if taking is not None and taking.done():
                    shot, taking = taking.result(), None
                    if shot is None:
                        ended = True
                    else:
                        running.append(asyncio.create_task(self._answer(shot)))
                self.dropped = feed.dropped
            if feed.error:
                raise ConfigError(feed.error)
        finally:
            feed.close()
            for task in (*running, *([taking] if taking else [])):
                await _stop(task)

    @property
    def _task(self) -> str | None:
        return None if self._pipeline is None else self._pipeline.bundle.manifest.task

    def _width(self, in_flight: int) -> int:
        """Frames under way at once: answers of the device itself come one after the other."""
        return 1 if self._pipeline is not None and self._pipeline.alone else in_flight

    async def _answer(self, shot: Shot) -> Answer:
        """The answer to one shot; asked again if the server came back with another profile."""
        started = time.monotonic()
        answer, pipeline = await self._attempt(shot, started)
        changed = self._stale() or self._pipeline is not pipeline
        if answer.label is None and pipeline is not None and changed:
            answer, _ = await self._attempt(shot, started)
        self._keeper.answered.set()
        return answer

    async def _attempt(self, shot: Shot, started: float) -> tuple[Answer, Pipeline | None]:
        pipeline = await self._ready(started if shot.captured is None else shot.captured)
        if pipeline is None:
            error = f"unavailable: {self._keeper.trouble or 'no bundle from the server yet'}"
            return _failed(error, "none", shot, started), None
        loop = asyncio.get_running_loop()
        try:
            frame = await loop.run_in_executor(self._worker, shot.frame, pipeline.read)
        except Exception as problem:  # decoders raise all kinds of errors on broken files
            text = problem.strerror if isinstance(problem, OSError) else None
            error = f"unreadable: {text or problem}"
            return _failed(error, pipeline.planner.strategy, shot, started), None
        return await pipeline.answer(frame), pipeline

    async def _ready(self, began: float) -> Pipeline | None:
        """The pipeline for what the server serves, or after `patience` whichever there is."""
        if not self._adopted.is_set():
            end = self._since + self.patience
            if self._deadline_ms is not None:
                end = min(end, began + self._deadline_ms / 1000.0 * 0.95)
            try:
                async with asyncio.timeout(max(end - time.monotonic(), 0.0)):
                    await self._adopted.wait()
            except TimeoutError:
                log.debug("no bundle for what the server serves")
        return self._pipeline

    def _stale(self) -> bool:
        """Whether the server is there and serves another profile than the adopted one."""
        welcome = self._client.welcome
        if self._pipeline is None or welcome is None or not self._client.connected:
            return False
        return welcome.digest != self._pipeline.bundle.manifest.digest

    async def _adopt(self, bundle: Bundle, planner: Planner) -> None:
        """Answer by this bundle from now on."""
        asker = Gate(self._client, bundle.manifest.digest)
        pipeline = Pipeline(
            bundle, planner, asker, self._worker, patience=self.patience, link=self.link
        )
        await pipeline.prepare()
        pipeline.down_since = self._since if self._down else None
        self._pipeline = pipeline
        if not self._stale():
            self._adopted.set()
        log.info("profile %r, strategy %s", bundle.manifest.name, planner.strategy)

    async def _completed(self) -> None:
        if self._pipeline is not None:
            await self._pipeline.rehearse()

    def _on_state(self, connected: bool, reason: str) -> None:
        if self._down == connected:
            self._since = time.monotonic()
        self._down = not connected
        if self._pipeline is not None:
            self._pipeline.down_since = None if connected else self._since
        if connected:
            if self._stale():
                self._adopted.clear()
            self._keeper.link_changed()


def offboard_connect(
    server: str,
    *,
    strategy: str | None = None,
    params: Mapping[str, Any] | None = None,
    deadline_ms: float | None = None,
    profile: str | None = None,
    token: str = "",
    cache: Path | None = None,
    patience: float = PATIENCE,
) -> Offboard:
    """A device's end of Offboard, to be entered with `async with`.

    `server`: HOST:PORT. `strategy` None: the profile's. `params` override the profile's
    parameters. `deadline_ms` runs from the moment a frame is in memory. `profile`: the only one to
    be answered by. `patience`: seconds without a server that a frame waits if nothing else can
    answer it. Raises ConfigError.
    """
    host, port = address(server)
    choice = Choice(strategy, params or {}, deadline_ms, profile)
    choice.check()
    return Offboard(
        host, port, choice, token=token, cache=cache or default_cache(), patience=patience
    )


class BlockingOffboard:
    """`Offboard` for programs without an event loop: it runs one in a thread of its own."""

    def __init__(self, server: str, **options: Any) -> None:
        self._server = server
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="offboard", daemon=True)
        self._offboard: Offboard | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._offboard = self._call(self._enter())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._offboard is not None:
            self._call(self._offboard.__aexit__(kind, error, trace))
        self._end()

    def infer(self, picture: str | Path | bytes | Pixels, name: str | None = None) -> Answer:
        """As `Offboard.infer`; may be called from several threads."""
        if self._offboard is None:
            raise Unavailable("enter it first: with offboard_connect_blocking(...) as offboard")
        return self._call(self._offboard.infer(picture, name))

    async def _enter(self) -> Offboard:
        return await offboard_connect(self._server, **self._options).__aenter__()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()


def offboard_connect_blocking(server: str, **options: Any) -> BlockingOffboard:
    """As `offboard_connect`, for `with` and without `await`."""
    return BlockingOffboard(server, **options)


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT too. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"server {text!r}: give HOST:PORT, such as 192.168.1.20:7070")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _name(data: Data, index: int) -> str:
    return str(data) if isinstance(data, Path) else str(index)


async def _next(feed: Feed) -> Shot | None:
    return await anext(feed, None)


async def _stop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=5.0)


def _failed(error: str, strategy: str, shot: Shot, started: float) -> Answer:
    began = started if shot.captured is None else shot.captured
    answer = failed(error, strategy=strategy, frame=shot.name)
    return replace(answer, latency_ms=(time.monotonic() - began) * 1000.0)
