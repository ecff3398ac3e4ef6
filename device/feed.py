"""Shots from a blocking source to the event loop, by one thread.

A stored source waits until its shots are taken; a live one keeps only the newest. The thread is a
daemon: a camera or a pipe that gives nothing must not hold up the end of the program.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque

from device.source import Shot, Source

log = logging.getLogger("offboard.device")
AHEAD = 2
"""Stored shots read ahead."""


class Feed:
    """Async iteration over a source's shots. `dropped`: live shots that were never looked at.

    A source that fails ends the feed; `error` then says why.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._shots: deque[Shot] = deque()
        self._filled = asyncio.Event()
        self._room = threading.Semaphore(AHEAD)
        self._closed = False
        self._done = False
        self.dropped = 0
        self.error: str | None = None
        threading.Thread(target=self._read, name="offboard-source", daemon=True).start()

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Shot:
        while not self._shots:
            if self._done:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        if not self._source.live:
            self._room.release()
        return self._shots.popleft()

    def close(self) -> None:
        """Take no more shots; the thread ends with the read it is in."""
        self._closed = True
        self._room.release()

    def _read(self) -> None:
        error: str | None = None
        try:
            for shot in self._source.shots():
                if not self._source.live:
                    self._room.acquire()
                if self._closed:
                    return
                self._loop.call_soon_threadsafe(self._take, shot)
        except Exception as problem:
            log.exception("the source failed")
            error = f"the source failed: {problem}"
        finally:
            # The loop may have ended before a daemon thread does.
            if not self._loop.is_closed():
                try:
                    self._loop.call_soon_threadsafe(self._end, error)
                except RuntimeError:
                    log.debug("the loop ended before the source")

    def _take(self, shot: Shot) -> None:
        if self._source.live:
            self.dropped += len(self._shots)
            self._shots.clear()
        self._shots.append(shot)
        self._filled.set()

    def _end(self, error: str | None) -> None:
        self._done = True
        self.error = error
        self._filled.set()
