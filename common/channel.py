"""Opens channels: a device connects, a server listens. How a `Channel` is used.

A `Channel` is one connection, on either side, between a transport and a `Handler`. It parses
(`parser`), checks what may be said when (`protocol`), pings, lingers and closes; the handler sees
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
    listener.port                                    # the peer is then sent a Bye(its code)
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
deadlines, credits and reconnection on top).

`run(main())` runs a program on uvloop where that is installed, else on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from ssl import SSLContext
from typing import Any, Final, TypeVar, cast

from common.connection import Channel, Handler
from common.errors import OffboardError, Refused, Silent, Unavailable
from common.messages import Hello, Message, Welcome
from common.protocol import Side, Timing
from common.wire import DEFAULT, Limits

__all__ = [
    "Channel",
    "Handler",
    "Listener",
    "connect",
    "new_event_loop",
    "run",
    "serve",
]

T = TypeVar("T")
DARK: Final = frozenset(
    (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT)
)
"""Errors of connecting that say nothing of the server."""


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
            channel.speak_for(self._handler)
            if not self.welcomed.done():
                self.welcomed.set_result(None)

    def on_closed(self, channel: Channel, reason: str) -> None:
        if not self.welcomed.done():
            bye = channel.bye
            error: OffboardError = Unavailable(reason)
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
    on_open: Callable[[], None] | None = None,
) -> Channel:
    """Connect, say `hello` and wait for the welcome, `timeout` seconds in all.

    Raises Silent if nothing comes back at all, Unavailable if there is no server, or Refused if
    it will not have us. `handler` hears what comes after the welcome. `on_open` is called when
    the socket is connected.
    """
    loop = asyncio.get_running_loop()
    greeter = _Greeter(handler)
    channel = Channel(Side.DEVICE, lambda _: greeter, limits, timing or Timing(), hello)
    opened = False
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: channel, host, port, ssl=ssl)
            opened = True
            if on_open is not None:
                on_open()
            await greeter.welcomed
    except BaseException as error:
        greeter.welcomed.cancel()
        channel.abort("not connected")
        if isinstance(error, TimeoutError):
            kind = Unavailable if opened else Silent
            raise kind(f"no welcome within {timeout:g} s") from None
        if isinstance(error, OSError):
            number = error.errno or 0  # negative where a name is unknown
            reason = os.strerror(number) if number > 0 else error.strerror or str(error)
            kind = Silent if number in DARK else Unavailable
            raise kind(reason) from None
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
