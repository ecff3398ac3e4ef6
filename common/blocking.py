"""The blocking client for scripts: the same core as `client`, one query at a time, no event loop.

    with BlockingClient("127.0.0.1", 7070, token="...") as client:
        reply = client.ask(Query("raw", "whole", tensors={...}), deadline=0.5)
        model = client.fetch("model.onnx", deadline=5.0)

It connects when it is first asked, and again after the link dropped, never sooner than the
back-off allows. It belongs to one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ssl import SSLContext
from types import TracebackType
from typing import Final

from common.backoff import Backoff
from common.download import Download
from common.errors import OffboardError, ProtocolError, Refused, Unavailable
from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Ping,
    Pong,
    Query,
    Refusal,
    Result,
    Welcome,
)
from common.parser import Parser
from common.pending import Book, Pending, Reply
from common.protocol import Phase, Side, State
from common.sockets import BlockingSocket
from common.wire import BEFORE_AUTH, DEFAULT, VERSIONS, Limits, encode

FRESH: Final = 0.1
"""Seconds for which a connection is believed to stand since something was heard."""


class BlockingClient:
    """One server, asked one thing at a time. Times in seconds.

    timeout: to connect and be welcomed. patience: the longest silence while no deadline is set.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        token: str = "",
        agent: str = "offboard",
        strategies: tuple[str, ...] = (),
        ssl: SSLContext | None = None,
        timeout: float = 10.0,
        patience: float = 60.0,
        limits: Limits = DEFAULT,
        backoff: Backoff | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.welcome: Welcome | None = None
        """What the server said when it was last connected to; None before."""
        self._hello = Hello(VERSIONS, agent, strategies, limits.packet, token)
        self._ssl, self._limits = ssl, limits
        self._timeout, self._patience = timeout, patience
        self._backoff = backoff or Backoff()
        self._not_before = -math.inf
        self._trouble: OffboardError = Unavailable("not connected yet")
        self._book = Book()
        self._socket: BlockingSocket | None = None
        self._parser = Parser(BEFORE_AUTH)
        self._state = State(Side.DEVICE, 0.0)
        self._heard = -math.inf

    def __enter__(self) -> BlockingClient:
        self._connected(time.monotonic() + self._timeout)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say Bye and close."""
        if self._socket is not None:
            try:
                self._send(Bye("done", "the client was closed"), time.monotonic() + 1.0)
            except OffboardError:
                return  # it is closed then
            self._drop(Unavailable("the client was closed"))

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know: nobody listens between two queries."""
        return self._socket is not None

    def ask(self, query: Query, deadline: float | None = None) -> Reply:
        """The server's answer to `query`, within `deadline` seconds.

        Raises Refused if the server declines it, Unavailable if the deadline passes or the link
        is down.
        """
        began = time.monotonic()
        end = math.inf if deadline is None else began + deadline
        pending = Pending(query, _nobody, None, began, end)
        result = self._converse(pending, lambda message: type(message) is Result)
        assert isinstance(result, Result)
        elapsed = (time.monotonic() - began) * 1000
        return Reply(result, pending.bytes_up, self._parser.size, elapsed)

    def fetch(self, path: str, deadline: float | None = None, limit: int = 1 << 30) -> bytes:
        """The file `path` of the device's bundle ("": its manifest), its sha256 checked.

        Goes on where it was if the link drops. `limit`: the longest file taken, in bytes. Raises
        Refused, Unavailable, or ProtocolError if the file is not as announced.
        """
        download = Download(path, limit)
        end = math.inf if deadline is None else time.monotonic() + deadline

        def take(message: Message) -> bool:
            return isinstance(message, Chunk) and download.add(message)

        for attempt in range(5):
            try:
                asked = Fetch(path, download.offset)
                self._converse(Pending(asked, _nobody, None, time.monotonic(), end), take)
                break
            except Unavailable:
                pause = max(0.0, self._not_before - time.monotonic())
                if attempt == 4 or time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)
        return download.data()

    # One question and its answer.

    def _converse(self, pending: Pending, done: Callable[[Message], bool]) -> Message:
        """Send `pending` and read until a message of its id is `done`."""
        end = pending.at
        self._connected(min(end, time.monotonic() + self._timeout))
        id = self._book.fly(pending)
        try:
            while len(self._state.outstanding) >= self._state.credits:
                self._take(self._receive(end))  # answers to what was given up
            left = pending.ms_left(time.monotonic())
            pending.bytes_up = self._send(pending.asked, end, id, left)
            while True:
                message = self._receive(end)
                if not self._take(message) or getattr(message, "id", 0) != id:
                    continue
                if type(message) is Refusal:
                    raise Refused(message.code, message.reason, retryable=message.retryable)
                if done(message):
                    return message
        except TimeoutError:
            if self._socket is not None and id in self._state.outstanding:
                self._send(Cancel(id=id), time.monotonic() + 1.0)
            waited = (time.monotonic() - pending.began) * 1000
            raise Unavailable(f"no answer within {waited:.0f} ms") from None
        except ProtocolError:
            self._drop(Unavailable("the file was not as announced"))
            raise
        finally:
            self._book.land(id)

    def _take(self, message: Message) -> bool:
        """Account for `message`; False if it was for the connection itself."""
        if type(message) is Ping:
            self._send(Pong(id=message.id), time.monotonic() + self._timeout)
        elif type(message) is Bye and self._state.phase is Phase.CLOSED:
            error = f"peer said {message.code}: {message.reason}"
            raise self._drop(
                Refused(message.code, message.reason)
                if message.code == "refused"
                else Unavailable(error)
            )
        return type(message) not in (Ping, Pong, Bye)

    # The connection.

    def _connected(self, end: float) -> None:
        """Be connected by `end`, or raise Unavailable or Refused."""
        if self._socket is not None and self._caught_up(end):
            return
        if time.monotonic() < self._not_before:
            raise Unavailable(f"not connected: {self._trouble}")
        self._parser = Parser(BEFORE_AUTH)
        self._state = State(Side.DEVICE, time.monotonic())
        try:
            self._socket = BlockingSocket(self.host, self.port, end, self._ssl)
            self._send(self._hello, end)
            while not isinstance(message := self._receive(end), Welcome):
                self._take(message)
        except TimeoutError:
            error = Unavailable(f"{self.host}:{self.port}: no welcome in time")
            raise self._drop(error) from None
        except OSError as error:
            raise self._drop(Unavailable(f"{self.host}:{self.port}: {error}")) from None
        self.welcome = message
        self._parser.limits, self._parser.version = self._limits, message.version
        self._backoff.succeeded()

    def _caught_up(self, end: float) -> bool:
        """Read what came since the last question; False if the connection is over."""
        if time.monotonic() - self._heard < FRESH and self._state.phase is Phase.OPEN:
            return True
        try:
            while self._socket is not None and self._socket.ready():
                self._take(self._receive(end))
        except OffboardError:
            self._not_before = -math.inf  # it worked until now: try again at once
        if self._socket is not None and self._state.phase is not Phase.OPEN:
            self._drop(Unavailable("the server went away"))
        return self._socket is not None

    def _send(self, message: Message, end: float, id: int = 0, ms_left: int | None = None) -> int:
        """Write `message`; its size. Raises Unavailable if the link drops or is stuck."""
        buffers, size = encode(message, id=id or None, ms_left=ms_left)
        if self.welcome is not None and size > self.welcome.packet_limit:
            raise Refused("bad", f"packet of {size} bytes, the server takes less")
        self._state.sent(message, id or None)
        assert self._socket is not None
        try:
            self._socket.send(buffers, min(end, time.monotonic() + self._patience))
        except OSError as error:  # a timeout too: half a packet is out, nothing can follow it
            raise self._drop(Unavailable(f"connection lost: {error}")) from None
        return size

    def _receive(self, end: float) -> Message:
        """The next message. Raises TimeoutError at `end`, Unavailable if the link drops."""
        parser = self._parser
        try:
            message = parser.next()
            while message is None:
                assert self._socket is not None
                until = min(end, time.monotonic() + self._patience)
                n = self._socket.receive(parser.get_buffer(), until)
                if not n:
                    how = "cut in the middle of a packet" if parser.partial else "closed"
                    raise self._drop(Unavailable(f"{how} by the peer"))
                message = parser.next(n)
            self._state.received(message)
            self._heard = time.monotonic()
        except TimeoutError:
            raise
        except OSError as error:
            raise self._drop(Unavailable(f"connection lost: {error}")) from None
        except ProtocolError as error:
            self._send(Bye("protocol", error.reason), time.monotonic() + 1.0)
            raise self._drop(error) from None
        return message

    def _drop(self, error: OffboardError) -> OffboardError:
        """Close, note why, and say when to try again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._trouble = error
        refused = isinstance(error, Refused)
        pause = self._backoff.refused() if refused else self._backoff.failed()
        self._not_before = time.monotonic() + pause
        return error


def _nobody(reply: object) -> None:
    """Blocking callers are answered by returning."""
