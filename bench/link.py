"""A slow link in front of a server, without root: rate, delay, jitter, or a replayed trace.

    python -m bench.link --listen 127.0.0.1:7071 --to 127.0.0.1:7070 --rate 7.6 --rtt 42.2
    python -m bench.link --listen 127.0.0.1:7071 --to 127.0.0.1:7070 --rtt 40 --trace lte.csv

Every connection to `listen` is carried to `to` and back. All connections of one direction share
one queue: a segment starts to leave when the one before it has left, takes its size over the rate
of that moment, and arrives a delay later. At rate 0 it waits. When the queue is full nothing more
is read, so the sender feels it.

There is no TCP between the two ends of this link, so there is no loss, no reordering and no slow
start in it; `tests/netem` has those, and says how near this link comes to them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.traces import Trace, load
from common.errors import ConfigError

SEGMENT = 1448
"""Bytes of the stream in one Ethernet frame of 1514."""
HEADERS = 66
"""Ethernet, IPv4 and TCP with timestamps: these take their time on the link, too."""
QUEUE = 256 << 10
"""Bytes waiting to leave above which no more are read."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One link, the same in both directions but for `up`. Milliseconds and Mbps.

    `rate`: both directions, or only the way back if `up` has a trace for the way to the server.
    `jitter`: each segment's delay varies evenly by as much to both sides, in order still.
    """

    rate: float = math.inf
    rtt: float = 0.0
    jitter: float = 0.0
    up: Trace | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rate >= 0 or not self.rtt >= 0 or not 0 <= self.jitter <= self.rtt / 2:
            raise ConfigError("rate and rtt must be 0 or more, jitter at most half the rtt")


@dataclass(slots=True)
class Direction:
    """When segments arrive. Pure: `now` is an argument, seconds since the trace began."""

    trace: Trace
    delay: float
    jitter: float = 0.0
    random: random.Random = field(default_factory=random.Random)
    _left: float = 0.0
    _arrived: float = 0.0

    def arrival(self, now: float, size: int) -> tuple[float, float]:
        """When a segment of `size` bytes given in at `now` has left, and when it arrives."""
        bits = 0.0 if math.isinf(self.trace.mbps[0]) else (size + HEADERS) * 8.0
        self._left = self.trace.finish(max(now, self._left), bits)
        late = self.random.uniform(-self.jitter, self.jitter) if self.jitter else 0.0
        self._arrived = max(self._arrived, self._left + self.delay + late)
        return self._left, self._arrived


class Pipe:
    """One direction's queue, shared by all connections."""

    def __init__(self, direction: Direction, began: float) -> None:
        self._direction = direction
        self._began = began
        self._leaving: deque[tuple[float, int]] = deque()
        self._waiting = 0

    def carry(self, data: bytes) -> list[tuple[float, bytes]]:
        """Take in `data`: its segments and when they arrive, in seconds on `time.monotonic`."""
        now = time.monotonic() - self._began
        carried = []
        for at in range(0, len(data), SEGMENT):
            segment = data[at : at + SEGMENT]
            left, arrives = self._direction.arrival(now, len(segment))
            self._leaving.append((left, len(segment)))
            self._waiting += len(segment)
            carried.append((self._began + arrives, segment))
        return carried

    def room(self) -> float:
        """Seconds until there is room in the queue again; 0 if there is now."""
        now = time.monotonic() - self._began
        while self._leaving and self._leaving[0][0] <= now:
            self._waiting -= self._leaving.popleft()[1]
        if self._waiting < QUEUE:
            return 0.0
        return max(0.001, min(self._leaving[0][0] - now, 1.0))


class End(asyncio.Protocol):
    """One socket of a connection: what it reads, the pipe carries to `other`."""

    def __init__(self, pipe: Pipe, gone: Callable[[End], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self._pipe = pipe
        self._gone = gone
        self._other: End | None = None
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._full = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._other is None:
            transport.pause_reading()  # until there is somewhere to carry it

    def join(self, other: End) -> None:
        """Carry what is read to `other`; one that is gone already takes this end along."""
        self._other = other
        if self.transport is not None and other.transport is None:
            self.transport.abort()
        self._read_on()

    def data_received(self, data: bytes) -> None:
        assert self._other is not None
        self._other.take(self._pipe.carry(data))
        self._read_on()

    def eof_received(self) -> bool:
        if self._other is not None:
            self._other.end()
        return True  # the way back stays open

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._gone(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._other is not None and self._other.transport is not None:
            self._other.transport.abort()

    def pause_writing(self) -> None:
        self._full = True
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._other is not None:
            self._other._read_on()

    def take(self, segments: list[tuple[float, bytes]]) -> None:
        """Write these when they are due."""
        self._due.extend(segments)
        if self._timer is None:
            self._deliver()

    def end(self) -> None:
        """Say that nothing follows, after all that is under way."""
        self._ended = True
        if self._timer is None:
            self._deliver()

    def _deliver(self) -> None:
        self._timer = None
        now = time.monotonic()
        ready = []
        while self._due and self._due[0][0] <= now:
            ready.append(self._due.popleft()[1])
        if self.transport is None:
            return
        if ready:
            self.transport.write(b"".join(ready))
        if self._due:
            # At rate 0 the segment is due at infinity: nothing to wait for but the end.
            if self._due[0][0] < math.inf:
                self._timer = self._loop.call_later(self._due[0][0] - now, self._deliver)
        elif self._ended and self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # it is gone, and nobody told us yet
                self.transport.write_eof()

    def _read_on(self) -> None:
        """Read while the queue has room and the other side takes what comes."""
        if self.transport is None or self.transport.is_closing():
            return
        wait = self._pipe.room()
        if wait:
            self.transport.pause_reading()
            self._loop.call_later(wait, self._read_on)
        elif self._other is not None and not self._other._full:
            self.transport.resume_reading()


class Link:
    """A listening link. `port` is known once it was opened."""

    def __init__(self, to: tuple[str, int], shape: Shape) -> None:
        began = time.monotonic()
        both = Trace.constant(shape.rate)
        delay, jitter = shape.rtt / 2000.0, shape.jitter / 1000.0
        there = Direction(shape.up or both, delay, jitter, random.Random(shape.seed))
        back = Direction(both, delay, jitter, random.Random(shape.seed + 1))
        self.port = 0
        self._to = to
        self._handshake = 2 * delay
        self._up, self._down = Pipe(there, began), Pipe(back, began)
        self._ends: set[End] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen on `host`:`port` (0: any free one). Raises OSError.

        Delays are as exact as the loop's timers: see `new_event_loop`.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, host, port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._opening:
            task.cancel()
        for end in self._ends:
            if end.transport is not None:
                end.transport.abort()
        await asyncio.sleep(0.01)  # what was aborted is closed in the loop's next turns

    def _accepted(self) -> End:
        near = self._end(self._up)
        task = asyncio.get_running_loop().create_task(self._open_far(near))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return near

    async def _open_far(self, near: End) -> None:
        # On a real link the handshake takes a round trip before the first byte can follow.
        await asyncio.sleep(self._handshake)
        far = self._end(self._down)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: far, *self._to)
        except OSError:
            self._ends.discard(far)
            if near.transport is not None:
                near.transport.abort()
            return
        near.join(far)
        far.join(near)

    def _end(self, pipe: Pipe) -> End:
        end = End(pipe, self._ends.discard)
        self._ends.add(end)
        return end


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop with timers exact to some 0.1 ms.

    epoll counts whole milliseconds, half the round trip of Wi-Fi; select does not.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@contextlib.contextmanager
def running(to: str, shape: Shape, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """A link to `to` in a thread of its own; yields the HOST:PORT to connect to."""
    loop = new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="link", daemon=True)
    thread.start()

    def call(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(10.0)

    host, port = address(listen)
    link = Link(address(to), shape)
    try:
        call(link.open(host, port))
        yield f"{host}:{link.port}"
        call(link.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5.0)
        loop.close()


def address(text: str) -> tuple[str, int]:
    """HOST:PORT. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{text!r}: give HOST:PORT")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry connections until interrupted."""
    parser = argparse.ArgumentParser("bench.link", description="a slow link in front of a server")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=math.inf, help="Mbps, both ways")
    parser.add_argument("--rtt", type=float, default=0.0, help="milliseconds there and back")
    parser.add_argument("--jitter", type=float, default=0.0, help="milliseconds to both sides")
    parser.add_argument("--trace", type=Path, help="CSV of t_s,mbps for the way to the server")
    args = parser.parse_args(argv)

    async def carry() -> None:
        up = load(args.trace) if args.trace else None
        shape = Shape(args.rate, args.rtt, args.jitter, up)
        link = Link(address(args.to), shape)
        await link.open(*address(args.listen))
        print(f"carrying {args.listen} to {args.to}", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await link.close()

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(carry())
    except KeyboardInterrupt:
        return 130
    except (ConfigError, OSError) as error:
        print(f"bench.link: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
