"""The asyncio client: ask(query) -> Reply, with ids, deadlines, credits and reconnection.

    async with Client.connect("127.0.0.1", 7070, token="...") as client:
        reply = await client.ask(Query("raw", "whole", tensors={...}), deadline=0.5)
        print(reply.result.tensors["probabilities"], reply.bytes_up, reply.elapsed_ms)

A query is registered before it is written, so no answer can come too early; it fails at once when
the link drops; one timer, set to the earliest deadline, sweeps those that are late. No task and no
future is made for a query given to `submit`. Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, TypedDict, Unpack

from common.backoff import Backoff
from common.channel import Channel, connect
from common.download import Download
from common.errors import OffboardError, ProtocolError, Refused, Unavailable
from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Query,
    Refusal,
    Result,
    Welcome,
)
from common.pending import Book, OnChunk, OnReply, Pending, Reply
from common.protocol import Timing
from common.reach import reach, stay
from common.standing import Standing
from common.wire import DEFAULT, VERSIONS, Limits

__all__ = ["Client", "Pending", "Reply"]

WAITING: Final = 1024
"""Queries that may wait for a credit; more fail at once."""
STABLE: Final = 5.0
"""Seconds a connection must have lasted to count as a success for the back-off."""


class Options(TypedDict, total=False):
    """What `Client.connect` takes besides the address. Times in seconds."""

    token: str
    agent: str
    strategies: tuple[str, ...]
    ssl: SSLContext | None
    wait: float
    timeout: float
    on_state: Callable[[bool, str], None] | None
    limits: Limits
    timing: Timing | None
    backoff: Backoff | None


class Client:
    """One server, reached for as long as the client is open. Made by `Client.connect`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str = "",
        agent: str = "offboard",
        strategies: tuple[str, ...] = (),
        ssl: SSLContext | None = None,
        wait: float = 10.0,
        timeout: float = 10.0,
        on_state: Callable[[bool, str], None] | None = None,
        limits: Limits = DEFAULT,
        timing: Timing | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.welcome: Welcome | None = None
        """What the server said when it was last connected to; None before."""
        self._hello = Hello(VERSIONS, agent, strategies, limits.packet, token)
        self._ssl, self._limits, self._timing = ssl, limits, timing
        self._wait, self._timeout = wait, timeout
        self._standing = Standing(f"{host}:{port}", on_state)
        self._backoff = backoff or Backoff()
        self._channel: Channel | None = None
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._book = Book()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @classmethod
    def connect(cls, host: str, port: int, **options: Unpack[Options]) -> Client:
        """A client of `host`:`port`, to be entered with `async with`.

        Entering waits `wait` (10) seconds for the first connection and raises Unavailable or
        Refused if there is none by then; with wait=0 it returns at once. The client then goes on
        trying, `timeout` (10) seconds for each attempt, until it is closed. `on_state(connected,
        reason)` is called at each change of state. `strategies`: what this device can do.
        """
        return cls(host, port, **options)

    async def __aenter__(self) -> Client:
        self._keeper = asyncio.create_task(self._keep())
        if self._wait > 0:
            try:
                await self.wait_connected(self._wait)
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Fail what is outstanding, say Bye and stop. Bounded by the channel's linger."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=5.0)
        channel, self._channel = self._channel, None
        self._standing.trouble = closed = Unavailable("the client was closed")
        self._fail(closed)
        if channel is not None:
            channel.close(Bye("done", "the client was closed"))
            await asyncio.wait([channel.gone], timeout=5.0)

    @property
    def connected(self) -> bool:
        """Whether queries can be sent now."""
        return self._channel is not None

    @property
    def rtt(self) -> float | None:
        """Seconds of the shortest round trip that the kernel has seen; None if it tells none."""
        tcp = None if self._channel is None else self._channel.tcp
        return None if tcp is None else tcp.rtt

    async def wait_connected(self, timeout: float) -> None:
        """Wait until connected. Raises Refused if we are, Unavailable after `timeout` seconds."""
        await self._standing.wait(timeout)

    async def ask(self, query: Query, deadline: float | None = None) -> Reply:
        """The server's answer to `query`, within `deadline` seconds (None: however long).

        Raises Refused if the server declines it, Unavailable if the deadline passes or the link
        is down or drops. Being cancelled tells the server. The tensors' data must not change
        before the answer is there.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Reply | OffboardError) -> None:
            if not future.done():
                if isinstance(reply, Reply):
                    future.set_result(reply)
                else:
                    future.set_exception(reply)

        pending = self._ask(query, on_reply, None, deadline)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(pending)
            raise

    def submit(self, query: Query, on_reply: OnReply, deadline: float | None = None) -> Pending:
        """`ask` without a future: `on_reply(Reply | error)` is called once, from the loop.

        It must not block; it is not called before this returns.
        """
        return self._ask(query, on_reply, None, deadline)

    def cancel(self, pending: Pending) -> None:
        """Give up: the server is told, and `on_reply` is not called any more."""
        if self._book.give_up(pending) and self._channel is not None:
            self._channel.send(Cancel(id=pending.id))

    async def fetch(self, path: str, deadline: float | None = None, limit: int = 1 << 30) -> bytes:
        """The file `path` of the device's bundle ("": its manifest), its sha256 checked.

        Goes on where it was when the link drops and comes back, within `deadline` seconds (None:
        while reconnecting takes less than a minute each time). `limit`: the longest file taken,
        in bytes. Raises Refused, Unavailable, or ProtocolError if the file is not as announced.
        """
        download = Download(path, limit)
        end = math.inf if deadline is None else time.monotonic() + deadline
        while True:
            try:
                await self._fetch_on(download, end)
                return download.data()
            except Unavailable:
                left = min(end - time.monotonic(), 60.0)
                if self._closed or self.connected or left <= 0:
                    raise
                await self.wait_connected(left)

    async def _fetch_on(self, download: Download, end: float) -> None:
        """Fetch from where `download` is up to the end of the file."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_chunk(chunk: Chunk) -> None:
            if download.add(chunk) and not future.done():
                future.set_result(None)

        def on_reply(reply: Reply | OffboardError) -> None:
            if isinstance(reply, OffboardError) and not future.done():
                future.set_exception(reply)

        left = None if end == math.inf else max(0.0, end - time.monotonic())
        asked = Fetch(download.path, download.offset)
        pending = self._ask(asked, on_reply, on_chunk, left)
        try:
            await future
        except asyncio.CancelledError:
            self.cancel(pending)
            raise

    # Asking.

    def _ask(
        self,
        asked: Query | Fetch,
        on_reply: OnReply,
        on_chunk: OnChunk | None,
        deadline: float | None,
    ) -> Pending:
        now = time.monotonic()
        at = math.inf if deadline is None else now + deadline
        pending = Pending(asked, on_reply, on_chunk, now, at)
        channel, waiting = self._channel, self._book.waiting
        if channel is None:
            self._later(pending, Unavailable(f"not connected: {self._standing.trouble}"))
        elif channel.draining:
            self._later(pending, Unavailable("the server is going away"))
        elif len(waiting) >= WAITING:
            self._later(pending, Unavailable(f"{WAITING} queries wait already"))
        else:
            if at < self._timer_at:
                self._set_timer(at, now)
            if waiting or not channel.writable or channel.credits_left <= 0:
                waiting.append(pending)
            else:
                self._send(channel, pending, now)
        return pending

    def _send(self, channel: Channel, pending: Pending, now: float) -> None:
        """Register, then write."""
        id = self._book.fly(pending)
        try:
            pending.bytes_up = channel.send(pending.asked, id=id, ms_left=pending.ms_left(now))
        except ValueError as error:  # too long for the server
            self._book.land(id)
            self._later(pending, Refused("bad", str(error)))

    def _pump(self) -> None:
        """Send what waits, as far as credits and the link go."""
        now = time.monotonic()
        waiting = self._book.waiting
        while waiting:
            channel = self._channel
            if channel is None or not channel.writable or channel.credits_left <= 0:
                return
            self._send(channel, waiting.popleft(), now)

    def _later(self, pending: Pending, error: OffboardError) -> None:
        asyncio.get_running_loop().call_soon(pending.answer, error)

    def _fail(self, error: OffboardError) -> None:
        """Nothing that is outstanding will be answered."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf
        for pending in self._book.clear():
            pending.answer(error)

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._sweep)

    def _sweep(self) -> None:
        """Fail what is late; sleep until the next deadline."""
        now = time.monotonic()
        late, earliest = self._book.late(now)
        self._timer, self._timer_at = None, math.inf
        if earliest < math.inf:
            self._set_timer(earliest, now)
        for pending in late:
            self.cancel(pending)
            waited = (now - pending.began) * 1000
            pending.answer(Unavailable(f"no answer within {waited:.0f} ms"))

    # What the channel calls.

    def on_message(self, channel: Channel, message: Message) -> None:
        """An answer came."""
        book = self._book
        if type(message) is Result:
            pending = book.land(message.id)
            if pending is not None:
                elapsed = (time.monotonic() - pending.began) * 1000
                pending.answer(Reply(message, pending.bytes_up, channel.received, elapsed))
        elif type(message) is Refusal:
            pending = book.land(message.id)
            if pending is not None:
                retryable = message.retryable
                pending.answer(Refused(message.code, message.reason, retryable=retryable))
        elif type(message) is Chunk:
            self._chunk(channel, message)
        if book.waiting:
            self._pump()

    def _chunk(self, channel: Channel, chunk: Chunk) -> None:
        pending = self._book.of(chunk.id)
        if pending is not None and pending.on_chunk is not None:
            try:
                pending.on_chunk(chunk)
            except ProtocolError as error:
                self.cancel(pending)
                pending.answer(error)
        if chunk.id not in channel.outstanding:
            self._book.land(chunk.id)

    def on_closed(self, channel: Channel, reason: str) -> None:
        """The link dropped."""
        if channel is self._channel:
            self._channel = None
            trouble = Unavailable(reason)
            self._standing.down(trouble)
            self._fail(trouble)

    # Being connected.

    async def _keep(self) -> None:
        """Connect, wait for the end, wait a while, connect again."""
        while True:
            try:
                channel = await reach(self._attempt, self._standing.down)
            except Refused as error:
                self._standing.down(error)
                pause = self._backoff.refused()
            except (Unavailable, ProtocolError) as error:
                self._standing.down(error)
                pause = self._backoff.failed()
            else:
                since = time.monotonic()
                while channel is not None:
                    if not channel.closing:
                        self._channel, self.welcome = channel, channel.welcome
                        channel.on_writable = self._pump
                        self._standing.up(_who(channel))
                    fresh = await stay(channel, self._attempt)
                    if fresh is not None:
                        self.on_closed(channel, "the link was dark")
                    channel = fresh
                if time.monotonic() - since >= STABLE:
                    self._backoff.succeeded()
                pause = self._backoff.failed()
            await asyncio.sleep(pause)

    def _attempt(self, on_open: Callable[[], None]) -> Coroutine[Any, Any, Channel]:
        return connect(
            self.host, self.port, self._hello, self, limits=self._limits, timing=self._timing,
            ssl=self._ssl, timeout=self._timeout, on_open=on_open,
        )  # fmt: skip


def _who(channel: Channel) -> str:
    welcome = channel.welcome
    return "" if welcome is None else f"{welcome.agent}, profile {welcome.profile}"
