"""Getting through to a server over a link that may be dark, and staying through.

TCP repeats what gets no answer after 1, 2, 4, 8... seconds: a link that is back would stay unused
for as long as it was away. So a silent attempt is joined by a fresh one every second, and the
first that is welcomed wins; a connection that has stalled is left for one that gets through. That
burdens nobody, since nothing arrives anywhere; a server that is there and says no is left alone,
for the caller's back-off to ask later.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from common.connection import Channel
from common.errors import OffboardError, Silent
from common.messages import Ping

AGAIN: Final = 1.0
"""Seconds at most from one attempt to the next while there is silence. Drawn evenly from half of
that up, so that devices behind one access point do not come back in step."""

LOOK: Final = 0.5
"""Seconds between looks whether a connection has stalled."""
STALLED: Final = 2
"""Times in a row that the kernel has repeated what was sent, nothing coming back."""
STAY_AWAY: Final = 5.0
"""Seconds before a server that refused a second connection is asked for one again."""

Attempt = Callable[[Callable[[], None]], Coroutine[Any, Any, Channel]]
"""`channel.connect`, given what to call when the socket is open."""


async def reach(
    attempt: Attempt,
    silent: Callable[[Silent], None],
    needed: Callable[[], bool] = lambda: True,
) -> Channel | None:
    """A welcomed channel; None once it is not `needed` any more.

    Raises what an attempt raises unless it is Silent, which `silent` is told of.
    """
    tasks: set[asyncio.Task[Channel]] = set()
    opened: list[bool] = []
    loop = asyncio.get_running_loop()
    try:
        while needed():
            until = loop.time() + random.uniform(AGAIN / 2, AGAIN)
            if not opened:
                tasks.add(loop.create_task(attempt(lambda: opened.append(True))))
            while tasks and (left := until - loop.time()) > 0:
                done, _ = await asyncio.wait(
                    tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    tasks.discard(task)
                    try:
                        return task.result()
                    except Silent as error:
                        silent(error)
            if not tasks:
                opened.clear()
                await asyncio.sleep(max(0.0, until - loop.time()))
        return None
    finally:
        for task in tasks:
            task.cancel()
        for late in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(late, Channel):
                late.abort("another attempt was first")


async def stay(channel: Channel, attempt: Attempt) -> Channel | None:
    """Wait until `channel` is gone: None; or has stalled while another gets through: that one."""
    heard = -1
    while True:
        await asyncio.wait([channel.gone], timeout=LOOK)
        if channel.gone.done():
            return None
        tcp = channel.tcp
        if tcp is not None and not tcp.unacked and channel.outstanding:
            # Only what we send shows whether the link is alive, and we may have nothing to say.
            if channel.bytes_in == heard:
                channel.send(Ping(id=1))
            heard = channel.bytes_in
        if _stalled(channel):
            fresh = await _overtake(channel, attempt)
            if fresh is not None:
                channel.abort("stalled")
                return fresh


async def _overtake(channel: Channel, attempt: Attempt) -> Channel | None:
    """A connection that gets through while `channel` is stalled, if it stays so."""
    try:
        fresh = await reach(attempt, lambda _: None, lambda: _stalled(channel))
    except OffboardError:
        # The server is there and will not have us twice: this one may recover, or die.
        await asyncio.wait([channel.gone], timeout=STAY_AWAY)
        return None
    if fresh is not None and not _stalled(channel):
        fresh.abort("the other connection goes on")
        return None
    return fresh


def _stalled(channel: Channel) -> bool:
    tcp = channel.tcp
    return tcp is not None and tcp.repeats >= STALLED
