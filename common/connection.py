"""One connection on an open transport: `Channel`, and the `Handler` it speaks for.

`channel` opens and accepts connections, and says how a Channel is used; `sockets` writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final, Protocol, cast

from common.errors import ProtocolError, Refused, Unavailable
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
    Welcome,
)
from common.parser import Parser
from common.protocol import Phase, Side, State, Timing, choose_version
from common.sockets import Outlet
from common.tcpinfo import TcpInfo
from common.wire import BEFORE_AUTH, Limits, encode

log = logging.getLogger("offboard.channel")

_INNER: Final = frozenset({Ping, Pong, Bye, Hello, Welcome, Cancel})


class Handler(Protocol):
    """Whoever a channel speaks for."""

    def on_message(self, channel: Channel, message: Message) -> None:
        """A message came; the protocol allows it. Runs on the loop and must not block."""

    def on_closed(self, channel: Channel, reason: str) -> None:
        """The conversation is over, whoever ended it. Called once, last."""


class Channel(asyncio.BufferedProtocol):
    """One connection. Made by `channel.serve` and `channel.connect` only; see there."""

    def __init__(
        self,
        side: Side,
        attach: Callable[[Channel], Handler],
        limits: Limits,
        timing: Timing,
        hello: Hello | None = None,
    ) -> None:
        self.peer = "?"
        self.version = 1
        self.received = 0
        self.authenticated = False
        self.writable = True
        """Whether the peer keeps up; `on_writable` is called when it does again."""
        self.on_writable: Callable[[], None] | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.hello = hello
        """The Hello received (server) or sent (device)."""
        self.welcome: Welcome | None = None
        self.closing = False
        """Whether this side has stopped speaking and listening."""
        self.bye: Bye | None = None
        """The peer's Bye, once it came."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""
        self._attach = attach
        self._limits = limits
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._state = State(side, self._loop.time(), timing)
        self._parser = Parser(BEFORE_AUTH)
        self.get_buffer = self._parser.get_buffer  # type: ignore[method-assign]
        self._handler: Handler | None = None
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet | None = None
        self._peer_limit = BEFORE_AUTH.packet
        self._heard = False
        self._streams: dict[int, Iterator[Chunk]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def speak_for(self, handler: Handler) -> None:
        """Hand the conversation over to `handler`."""
        self._handler = handler

    # What the handler calls.

    @property
    def outstanding(self) -> frozenset[int]:
        """Ids of queries and fetches not answered yet."""
        return frozenset(self._state.outstanding)

    @property
    def credits_left(self) -> int:
        """How many more queries may be outstanding; 0 unless open."""
        state = self._state
        return state.credits - len(state.outstanding) if state.open else 0

    @property
    def draining(self) -> bool:
        """Whether no more queries are taken."""
        return self._state.draining

    @property
    def tcp(self) -> TcpInfo | None:
        """What the kernel knows of this connection; None where it does not tell."""
        return None if self._outlet is None or self.closing else self._outlet.tcp

    def send(self, message: Message, *, id: int | None = None, ms_left: int | None = None) -> int:
        """Write `message`; its size in bytes, or 0 if the channel is closed. Never waits.

        `id` and `ms_left` replace the message's own. The tensors' data must not change until the
        answer is there. Raises ValueError for what the peer must not be sent (see
        `protocol.State.sent`) and for a packet over the peer's limit.
        """
        outlet, state = self._outlet, self._state
        if self.closing or outlet is None:
            return 0
        buffers, size = encode(message, id, ms_left, self.version)
        if size > self._peer_limit:
            raise ValueError(f"packet of {size} bytes, the peer takes {self._peer_limit}")
        state.sent(message, id)
        self.bytes_out += size
        outlet.write(buffers, size)
        if state.draining and not state.outstanding:
            self._finish("drained")
        return size

    def accept(self, welcome: Welcome) -> None:
        """Server: answer Hello. The limits rise and queries may come."""
        if self.hello is None or self.authenticated:
            raise ValueError("there is no Hello to accept")
        self.welcome = welcome
        self.authenticated = True
        self._peer_limit = self.hello.packet_limit
        self._parser.limits = self._limits
        self._parser.version = welcome.version
        self.send(welcome)

    def stream(self, id: int, chunks: Iterator[Chunk]) -> None:
        """Answer fetch `id`: send each chunk as soon as the peer has room.

        `chunks` raising is answered with Refusal("failed"). Cancel stops it.
        """
        self._streams[id] = chunks
        self._pump()

    def drain(self, reason: str) -> None:
        """Take no more queries, answer those outstanding, then close."""
        if self.closing or self._state.phase is Phase.DRAINING:
            return
        if self._state.phase is not Phase.OPEN:
            self.close(Bye("drain", reason))
            return
        self._state.enter(Phase.DRAINING)
        self.send(Bye("drain", reason))

    def close(self, bye: Bye | None = None) -> None:
        """Say Bye (code "done" unless given) and close; the socket is gone within the linger."""
        if not self.closing:
            bye = bye or Bye("done", "")
            self.send(bye)
            self._finish(bye.reason or "closed here")

    def abort(self, reason: str) -> None:
        """Close the socket now, saying nothing."""
        self._ended(reason)
        if self._transport is not None:
            self._transport.abort()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._outlet = Outlet(self._transport)
        self.peer = self._outlet.peer
        self._arm()
        try:
            self._handler = self._attach(self)
        except Refused as error:
            self.close(Bye(error.code, error.reason))
        if self.hello is not None:
            self.send(self.hello)

    def get_buffer(self, sizehint: int) -> memoryview:
        raise NotImplementedError  # the parser's stands here: one call less for every packet

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_in += nbytes
        self._heard = True
        if self.closing:
            return  # what still comes is read only so that the peer gets to our Bye
        parser, state = self._parser, self._state
        try:
            message = parser.next(nbytes)
            while message is not None:
                self.received = parser.size
                if state.received(message):
                    if type(message) in _INNER or state.draining:
                        self._inner(message)
                    elif self._handler is not None:
                        self._handler.on_message(self, message)
                message = parser.next() if parser.left and not self.closing else None
        except ProtocolError as error:
            self.close(Bye("protocol", error.reason))
        except Exception:
            log.exception("%s: the handler failed", self.peer)
            self.close(Bye("done", "internal error"))

    def eof_received(self) -> bool:
        self._ended(
            "cut in the middle of a packet" if self._parser.partial else "closed by the peer"
        )
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(f"connection lost: {exc}" if exc else "connection lost")
        self._outlet = None  # its descriptor may soon be another connection's
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._streams.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self.writable = False
        # A server that read on while its answers pile up would hold them for a peer that never
        # reads. A device must read on, or both could wait for each other.
        if self._state.side is Side.SERVER and self._transport is not None and not self.closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        if self._state.side is Side.SERVER and self._transport is not None:
            self._transport.resume_reading()
        self._pump()
        if self.on_writable is not None:
            self.on_writable()

    # Inside.

    def _inner(self, message: Message) -> None:
        """Deal with what concerns the connection itself, or comes while it drains."""
        match message:
            case Ping():
                self.send(Pong(id=message.id))
            case Pong():
                pass
            case Bye():
                self._heard_bye(message)
            case Hello():
                self._greeted(message)
            case Cancel() if message.id in self._streams:
                self._stop(message.id, "cancelled", "")
            case Query() | Fetch() if self._state.draining:
                self.send(Refusal("draining", "the server is going away", True, id=message.id))
            case _:
                if type(message) is Welcome:
                    self._welcomed(message)
                if self._handler is not None:
                    self._handler.on_message(self, message)
        if self._state.draining and not self._state.outstanding and not self.closing:
            self._finish("drained")

    def _greeted(self, hello: Hello) -> None:
        try:
            self.version = choose_version(hello.accept)
        except Refused as error:
            self.close(Bye("refused", error.reason))
            return
        self.hello = hello
        if self._handler is not None:
            self._handler.on_message(self, hello)

    def _welcomed(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self.authenticated = True
        self.version = self._parser.version = welcome.version
        self._parser.limits = self._limits
        self._peer_limit = welcome.packet_limit

    def _heard_bye(self, bye: Bye) -> None:
        self.bye = bye
        if self._state.phase is Phase.CLOSED:
            self._finish(f"peer said {bye.code}: {bye.reason}")
        elif not self._state.outstanding:
            self._finish(f"peer drained: {bye.reason}")

    def _pump(self) -> None:
        """Send from the oldest stream while the peer reads."""
        for _ in range(8):
            if not self._streams or not self.writable or self.closing:
                return
            id, chunks = next(iter(self._streams.items()))
            try:
                self.send(next(chunks), id=id)
            except StopIteration:
                self._stop(id, "failed", "the file ended early")
            except Exception:
                log.exception("%s: a stream failed", self.peer)
                self._stop(id, "failed", "the file could not be read")
            if id not in self._state.outstanding:
                self._streams.pop(id, None)
        self._loop.call_soon(self._pump)  # let others have the loop

    def _stop(self, id: int, code: str, reason: str) -> None:
        """End a stream before its last chunk."""
        self._streams.pop(id, None)
        if id in self._state.outstanding:
            self.send(Refusal(code, reason, False, id=id))

    def _arm(self) -> None:
        timing = self._timing
        self._timer = self._loop.call_later(
            min(timing.hello, timing.ping, timing.dead) / 4, self._tick
        )

    def _tick(self) -> None:
        heard, self._heard = self._heard, False
        try:
            ping = self._state.tick(self._loop.time(), heard)
        except ProtocolError as error:
            self.close(Bye("protocol", error.reason))
        except Unavailable as error:
            self.abort(str(error))
        else:
            if ping is not None:
                self.send(ping)
            if not self.closing:
                self._arm()

    def _finish(self, reason: str) -> None:
        """Flush and close so that the peer can read what we said last; bounded by the linger."""
        if self.closing:
            return
        self._ended(reason)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        # Closing with unread bytes would reset the connection and could take our Bye with it. So
        # end our half, read on, and close when the peer has closed or the linger is over.
        self._timer = self._loop.call_later(self._timing.linger, transport.abort)
        if self._state.phase is Phase.CLOSED or not transport.can_write_eof():
            transport.close()
        else:
            transport.resume_reading()
            with contextlib.suppress(OSError):  # the peer has reset the connection already
                transport.write_eof()
        self._state.enter(Phase.CLOSED)

    def _ended(self, reason: str) -> None:
        """Tell the handler, once."""
        if self.closing:
            return
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._handler is not None:
            self._loop.call_soon(self._handler.on_closed, self, reason)
