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
                    channel.stream(chunks(message))  # an iterator of Chunk, pulled as the
                                                     # peer reads; or send(Refusal(...))
                case Cancel():                       # only ids still outstanding come up;
                    ...                              # such a query is still to be answered:
                                                     # Refusal("cancelled", ...) frees its credit
        def on_closed(self, channel: Channel, reason: str) -> None: ...   # last call, once

    listener = await serve(host, port, Session)      # `Session(channel)` may raise Refused:
    listener.port                                    # the peer is then sent a Bye("refused")
    listener.channels                                # set of open channels
    await listener.close("restarting", grace=5.0)    # stop accepting, Bye("drain") to all, wait

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
    channel.stream(iterator)             send each message when the peer has room
    channel.drain(reason)                Bye("drain"); queries that still come are refused for
                                         you; closes by itself when nothing is outstanding
    channel.close(bye)                   say Bye (default "done"), flush, close; bounded
    channel.abort(reason)                close now, saying nothing

Device: `await connect(host, port, hello, handler) -> Channel` (see `client.Client` for ids,
deadlines, credits and reconnection on top). `BlockingSocket` is the same for scripts.
"""

from __future__ import annotations
