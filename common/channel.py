"""The only file that touches a socket: asyncio channels, and the blocking socket for scripts.

A `Channel` is one connection, on either side, between a transport and a `Handler`. It parses
(`wire`), checks what may be said when (`protocol`), pings, lingers and closes; the handler sees
messages only. Every callback runs synchronously on the event loop, inside `buffer_updated`: it
must not block, and it may call `send`, `accept`, `close` and `drain` at once.

Server:

    class Session:                                   # one per connection
        def __init__(self, channel: Channel) -> None: ...
        def on_message(self, channel: Channel, message: Message) -> None:
            match message:
                case Hello():                        # first message, exactly once
                    if not token_ok: channel.close(Bye("refused", "bad token"))
                    else: channel.accept(Welcome(version=channel.version, credits=8, ...))
                case Query():                        # answer each exactly once, in any order
                    channel.send(Result(..., id=message.id))       # or Refusal(..., id=...)
                case Fetch():
                    channel.stream(message.id, chunks(message))    # an iterator of Chunk, pulled
                                                     # as the peer reads; or send(Refusal(...))
                case Cancel():                       # only of queries still outstanding (streams
                    ...                              # are stopped for you); such a query is still
                                                     # to be answered: Refusal("cancelled", ...)
        def on_closed(self, channel: Channel, reason: str) -> None: ...   # last call, once

    listener = await serve(host, port, Session)      # `Session(channel)` may raise Refused:
    listener.port                                    # the peer is then sent a Bye("refused")
    listener.channels                                # set of open channels
    await listener.close("restarting", grace=5.0)    # stop accepting, Bye("drain") to all, wait
                                                     # for what is outstanding, close the rest

Ping, Pong, Bye, version negotiation, credits and ids never reach the handler: a violation is
answered with Bye("protocol", reason), and only that connection closes. `channel.send` may be
called after the close (returns 0, the message is dropped); it is not thread-safe: other threads
use `loop.call_soon_threadsafe`.

    channel.peer             "127.0.0.1:50612"
    channel.received         size in bytes of the whole packet being dispatched
    channel.authenticated    True once `accept` was called (limits are then wire.DEFAULT)
    channel.outstanding      ids of queries and fetches not answered yet
    channel.bytes_in / .bytes_out
    channel.send(message) -> int         bytes of the packet; 0 when closed
    channel.accept(welcome)              server: answer Hello, lift the limits, grant credits
    channel.stream(id, iterator)         answer a Fetch: send each Chunk when the peer has room
    channel.drain(reason)                Bye("drain"); queries that still come are refused for
                                         you; closes by itself when nothing is outstanding
    channel.close(bye)                   say Bye (default "done"), flush, close; bounded
    channel.abort(reason)                close now, saying nothing

Device: `await connect(host, port, hello, handler) -> Channel` (see `client.Client` for ids,
deadlines, credits and reconnection on top). `BlockingSocket` is the same for scripts.

`run(main())` runs a program on uvloop where that is installed, else on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from ssl import SSLContext
from typing import Any, Final, Protocol, TypeVar, cast

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
    Welcome,
)
from common.parser import Parser
from common.protocol import Phase, Side, State, Timing, choose_version
from common.wire import BEFORE_AUTH, DEFAULT, Buffer, Limits, encode

_INNER: Final = frozenset({Ping, Pong, Bye, Hello, Welcome, Cancel})

log = logging.getLogger("offboard.channel")
T = TypeVar("T")

JOIN: Final = 32 << 10
"""Packets up to this many bytes are joined and written at once; larger ones are gathered."""
UNSENT: Final = 256 << 10
"""Bytes the transport may hold before writing is paused."""


class Handler(Protocol):
    """Whoever a channel speaks for."""

    def on_message(self, channel: Channel, message: Message) -> None:
        """A message came; the protocol allows it. Runs on the loop and must not block."""

    def on_closed(self, channel: Channel, reason: str) -> None:
        """The conversation is over, whoever ended it. Called once, last."""


class Channel(asyncio.BufferedProtocol):
    """One connection; see the module's docstring. Made by `serve` and `connect` only."""

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
        self._fd = -1
        self._peer_limit = BEFORE_AUTH.packet
        self._heard = False
        self._streams: dict[int, Iterator[Chunk]] = {}
        self._timer: asyncio.TimerHandle | None = None

    # What the handler calls.

    @property
    def outstanding(self) -> frozenset[int]:
        """Ids of queries and fetches not answered yet."""
        return frozenset(self._state.outstanding)

    @property
    def credits_left(self) -> int:
        """How many more queries may be outstanding; 0 unless open."""
        state = self._state
        if state.phase is not Phase.OPEN:
            return 0
        return state.credits - len(state.outstanding)

    @property
    def draining(self) -> bool:
        """Whether no more queries are taken."""
        return self._state.draining

    def send(self, message: Message, *, id: int | None = None, ms_left: int | None = None) -> int:
        """Write `message`; its size in bytes, or 0 if the channel is closed. Never waits.

        `id` and `ms_left` replace the message's own. The tensors' data must not change until the
        answer is there. Raises ValueError for what the peer must not be sent (see
        `protocol.State.sent`) and for a packet over the peer's limit.
        """
        if self.closing or self._transport is None:
            return 0
        buffers, size = encode(message, id, ms_left, self.version)
        if size > self._peer_limit:
            raise ValueError(f"packet of {size} bytes, the peer takes {self._peer_limit}")
        self._state.sent(message, id)
        self.bytes_out += size
        if size <= JOIN:
            self._transport.write(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        else:
            self._gather(self._transport, buffers)
        if self._state.draining and not self._state.outstanding:
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
        address = transport.get_extra_info("peername")
        self.peer = f"{address[0]}:{address[1]}" if address else "?"
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport.get_extra_info("ssl_object") is None:
            self._fd = sock.fileno()
        self._transport.set_write_buffer_limits(high=UNSENT)
        self._arm()
        try:
            self._handler = self._attach(self)
        except Refused as error:
            self.close(Bye("refused", error.reason))
        if self.hello is not None:
            self.send(self.hello)

    def get_buffer(self, sizehint: int) -> memoryview:
        raise NotImplementedError  # the parser's stands here: one call less for every packet

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_in += nbytes
        self._heard = True
        if self.closing:
            return  # what still comes is read only so that the peer gets to our Bye
        parser = self._parser
        parser.advance(nbytes)
        try:
            message = parser.next()
            while message is not None:
                self.received = parser.size
                if self._state.received(message):
                    if type(message) in _INNER or self._state.draining:
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
        self._fd = -1
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

    def _gather(self, transport: asyncio.Transport, buffers: list[Buffer]) -> None:
        """Write large buffers without joining them."""
        sent = 0
        if self._fd >= 0 and not transport.get_write_buffer_size() and not transport.is_closing():
            # Straight to the socket: the transport would copy. An error shows again in its write.
            with contextlib.suppress(OSError):
                sent = os.writev(self._fd, buffers)
        for buffer in buffers:
            n = len(buffer)
            if sent < n:
                transport.write(memoryview(buffer)[sent:] if sent else buffer)
            sent = max(0, sent - n)

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
        if transport.can_write_eof() and self._state.phase is not Phase.CLOSED:
            transport.resume_reading()
            transport.write_eof()
            self._timer = self._loop.call_later(self._timing.linger, transport.abort)
        else:
            transport.close()
            self._timer = self._loop.call_later(self._timing.linger, transport.abort)
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


class Listener:
    """A listening socket and its open channels."""

    def __init__(self) -> None:
        self.channels: set[Channel] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port listened on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, reason: str, grace: float = 5.0) -> None:
        """Stop accepting, drain every channel for at most `grace` seconds, close what is left."""
        if self._server is not None:
            self._server.close()
        channels = set(self.channels)
        for channel in channels:
            channel.drain(reason)
        if channels:
            _, late = await asyncio.wait([c.gone for c in channels], timeout=grace)
            for channel in channels:
                if channel.gone in late:
                    channel.abort("not drained in time")
            if late:
                await asyncio.wait(late, timeout=1.0)


async def serve(
    host: str,
    port: int,
    attach: Callable[[Channel], Handler],
    *,
    limits: Limits = DEFAULT,
    timing: Timing | None = None,
    ssl: SSLContext | None = None,
) -> Listener:
    """Listen on `host`:`port` (0: any free one); `attach` makes the handler of each connection.

    `attach` may raise Refused, whose reason the peer is told. Raises OSError if it cannot listen.
    """
    listener = Listener()

    def accepted() -> Channel:
        channel = Channel(Side.SERVER, attach, limits, timing or Timing())
        listener.channels.add(channel)
        channel.gone.add_done_callback(lambda _: listener.channels.discard(channel))
        return channel

    loop = asyncio.get_running_loop()
    listener._server = await loop.create_server(accepted, host, port, ssl=ssl)
    return listener


class _Greeter:
    """Stands before the device's handler until the server has answered Hello."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message(self, channel: Channel, message: Message) -> None:
        if type(message) is Welcome:
            channel._handler = self._handler
            if not self.welcomed.done():
                self.welcomed.set_result(None)

    def on_closed(self, channel: Channel, reason: str) -> None:
        if not self.welcomed.done():
            bye = channel.bye
            error: OffboardError = Unavailable(f"{channel.peer}: {reason}")
            if bye is not None and bye.code == "refused":
                error = Refused(bye.code, bye.reason)
            self.welcomed.set_exception(error)


async def connect(
    host: str,
    port: int,
    hello: Hello,
    handler: Handler,
    *,
    limits: Limits = DEFAULT,
    timing: Timing | None = None,
    ssl: SSLContext | None = None,
    timeout: float = 10.0,
) -> Channel:
    """Connect, say `hello` and wait for the welcome, `timeout` seconds in all.

    Raises Unavailable, or Refused if the server will not have us. `handler` hears what comes
    after the welcome.
    """
    loop = asyncio.get_running_loop()
    greeter = _Greeter(handler)
    channel = Channel(Side.DEVICE, lambda _: greeter, limits, timing or Timing(), hello)
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: channel, host, port, ssl=ssl)
            await greeter.welcomed
    except BaseException as error:
        greeter.welcomed.cancel()
        channel.abort("not connected")
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{host}:{port}: no welcome within {timeout:g} s") from None
        if isinstance(error, OSError):
            raise Unavailable(f"{host}:{port}: {error.strerror or error}") from None
        raise
    return channel


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where that is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program on the best loop there is, and close it."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


class BlockingSocket:
    """A TCP connection for `blocking.BlockingClient`. Ends on `time.monotonic`.

    Every call raises TimeoutError at its end and OSError if the link drops.
    """

    def __init__(self, host: str, port: int, end: float, ssl: SSLContext | None = None) -> None:
        self._socket = socket.create_connection((host, port), timeout=_left(end))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ssl is not None:
            self._socket = ssl.wrap_socket(self._socket, server_hostname=host)
        self._gathers = ssl is None

    def send(self, buffers: list[Buffer], end: float) -> None:
        """Write all of `buffers`."""
        if not self._gathers:
            self._socket.settimeout(_left(end))
            self._socket.sendall(b"".join(buffers))
            return
        while buffers:
            self._socket.settimeout(_left(end))
            sent = self._socket.sendmsg(buffers)
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.pop(0))
            if sent:
                buffers[0] = memoryview(buffers[0])[sent:]

    def receive(self, buffer: memoryview, end: float) -> int:
        """Read what is there into `buffer`: its length in bytes, 0 at the end of the stream."""
        self._socket.settimeout(_left(end))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
