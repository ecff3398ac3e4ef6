"""One thread drives one accelerator: prepares works, asks the batcher, runs forwards.

    loop thread:  submit(job) ---- SimpleQueue ----> executor thread: prepare, add, take, forward
                  job.done(job) <- one call_soon_threadsafe for all that is finished

No lock, future, task or timer per query. Batches are continuous: what arrives while a forward
runs makes the next batch. `prepare` decodes pictures, so it never runs on the loop: it runs on
the executor's thread (on a CPU it competes for the same cores anyway) or, beside a GPU, on
`prepare_threads` threads in front of it.

One query's failure stays its own: `prepare` refuses alone, and the works of a batch whose forward
raises are run again one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from math import inf
from queue import Empty, SimpleQueue

from common.errors import Refused
from common.messages import Query
from server.batcher import Batcher
from server.memory import NOTHING, Recalled
from server.metrics import Metrics
from server.strategy import Outcome, PassOn, Strategy, Work

log = logging.getLogger("offboard.executor")
GOING = "the server is going away"


class Job:
    """One query on its way through the server.

    Times in seconds on `time.monotonic`. `done` is called once, on the loop: `outcome` or `refused`
    is set then, or neither: `prepare` passes the query on. `cancelled` may be set at any time.
    `degraded`: why the answer will not be the best, whatever the strategy makes of it. `waited`:
    seconds that its query spent here before, on other ways.
    """

    __slots__ = (
        "arrived",
        "cancelled",
        "deadline",
        "degraded",
        "done",
        "key",
        "outcome",
        "query",
        "recalled",
        "refused",
        "source",
        "started",
        "waited",
        "work",
    )

    def __init__(
        self,
        query: Query,
        done: Callable[[Job], None],
        *,
        arrived: float,
        deadline: float = inf,
        source: Hashable = None,
        recalled: Recalled = NOTHING,
    ) -> None:
        self.query = query
        self.done = done
        self.arrived = arrived
        self.deadline = deadline
        self.source = source
        self.recalled = recalled
        self.cancelled = False
        self.degraded: str | None = None
        self.waited = 0.0
        self.key: Hashable = None
        self.work: Work | None = None
        self.started = 0.0
        """When its forward began."""
        self.outcome: Outcome | None = None
        self.refused: Refused | None = None


class Executor:
    """See the module's text. All methods are for the loop's thread.

    `limit`: jobs submitted and not done at which it is full. `on_death(error)`: called on the loop
    if the thread itself fails, which only a bug can cause; nothing is answered after that.
    """

    def __init__(
        self,
        strategies: Mapping[str, Strategy],
        *,
        max_wait: float = 0.0,
        max_batch: int = 32,
        limit: int = 512,
        prepare_threads: int = 0,
        metrics: Metrics | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._strategies = strategies
        self._batcher: Batcher[Job] = Batcher(max_wait=max_wait, max_batch=max_batch)
        self._limit = limit
        self._at_once = 4 * max_batch
        self._metrics = metrics or Metrics()
        self._on_death = on_death
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._raw: SimpleQueue[Job | None] = SimpleQueue()
        self._held: list[Job] = []
        self._finished: deque[Job] = deque()
        self._notified = False
        self._stopping = False
        self._preparers = [
            threading.Thread(target=self._prepare_loop, name=f"prepare-{i}", daemon=True)
            for i in range(prepare_threads)
        ]
        self._thread = threading.Thread(target=self._guarded, name="executor", daemon=True)
        self._entrance = self._raw if prepare_threads else self._inbox
        self.pending = 0
        """Jobs submitted and not done."""
        self.running_since: float | None = None
        """When the forward now running began."""
        self.failures_in_a_row = 0
        self.turns = 0
        """How often the thread has come round: a sign of life."""

    async def start(self) -> None:
        """Start the threads and warm every strategy on the thread that will run it.

        `done` will be called on the running loop. Raises what a strategy's `warm` raises.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._warm = self._loop.create_future()
        for thread in (*self._preparers, self._thread):
            thread.start()
        await self._warm

    @property
    def full(self) -> bool:
        """Whether the server has as much to do as it may: do not submit."""
        return self.pending >= self._limit

    def submit(self, job: Job) -> None:
        """Queue `job`; its `done` will be called."""
        self.pending += 1
        if self.pending == 1:
            self._entrance.put(job)
            return
        # A busy thread need not be woken for each: what one turn of the loop reads goes in
        # together. Threads that wake each other by turns lose more to the interpreter's lock.
        if not self._held:
            self._loop.call_soon(self._release)
        self._held.append(job)

    async def stop(self, grace: float = 5.0) -> None:
        """Let the running forward end, refuse the rest as "draining", end the threads.

        Waits at most `grace` seconds.
        """
        self._stopping = True
        self._release()
        for _ in self._preparers:
            self._raw.put(None)
        self._inbox.put(None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), grace)
        for queue in (self._raw, self._inbox):
            while queue.qsize():
                if (job := queue.get()) is not None:
                    self._finish(job, Refused("draining", GOING, retryable=True))
        self._deliver()

    # On the loop.

    def _release(self) -> None:
        put = self._entrance.put
        for job in self._held:
            put(job)
        self._held.clear()

    def _deliver(self) -> None:
        self._notified = False  # first: whoever finishes from here on notifies again
        finished = self._finished
        while finished:
            job = finished.popleft()
            self.pending -= 1
            try:
                job.done(job)
            except Exception:  # one session's trouble must not keep the others from their answers
                log.exception("a finished job could not be handed back")

    # On the threads.

    def _notify(self) -> None:
        if self._finished and not self._notified:
            self._notified = True
            self._call(self._deliver)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("the loop closed before the executor ended")

    def _finish(self, job: Job, refused: Refused | None = None) -> None:
        job.refused = refused
        self._finished.append(job)

    def _prepare_loop(self) -> None:
        while (job := self._raw.get()) is not None:
            if self._prepare(job):
                self._inbox.put(job)
            else:
                self._notify()

    def _prepare(self, job: Job) -> bool:
        """Make the work of `job`; False if it is finished with a refusal."""
        if job.cancelled or job.deadline <= time.monotonic():
            self._finish(job, _dropped(job))
            return False
        try:
            work = self._strategies[job.query.strategy].prepare(job.query, job.recalled)
            hash(work.key)  # it may hold what the device sent: fail here, not in the batcher
            job.key = work.key
            job.work = work
        except PassOn:
            self._finish(job)
            return False
        except Refused as refused:
            self._finish(job, refused)
            return False
        except Exception as error:
            log.exception("prepare of strategy %s failed", job.query.strategy)
            self._finish(job, Refused("failed", f"prepare raised {type(error).__name__}"))
            return False
        return True

    def _guarded(self) -> None:
        try:
            for strategy in self._strategies.values():
                strategy.warm()
        except Exception as error:
            self._call(self._warm.set_exception, error)
            self._call(self._ended.set)
            return
        self._call(self._warm.set_result, None)
        try:
            self._run()
        except BaseException as error:
            log.critical("the executor died", exc_info=True)
            if self._on_death is not None:
                self._call(self._on_death, error)
        finally:
            self._notify()
            self._call(self._ended.set)

    def _run(self) -> None:
        inbox, batcher = self._inbox, self._batcher
        while not self._stopping:
            self.turns += 1
            if not batcher:
                self._accept(inbox.get())
            elif not inbox.qsize():
                self._wait()
            # Not the whole inbox: decoding a long one would keep the accelerator waiting.
            for _ in range(min(inbox.qsize(), self._at_once)):
                self._accept(inbox.get())
            batch, dropped = batcher.take(time.monotonic())
            for job in dropped:
                self._finish(job, _dropped(job))
            if batch:
                if self._finished:
                    self._notify()
                self._forward(batch)
            self._notify()
        while inbox.qsize():
            self._accept(inbox.get())
        for job in batcher.clear():
            self._finish(job, Refused("draining", GOING, retryable=True))

    def _wait(self) -> None:
        """Wait for company for a batch that is held back."""
        wake = self._batcher.wake()
        if wake is not None and (wait := wake - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._accept(self._inbox.get(timeout=wait))

    def _accept(self, job: Job | None) -> None:
        if job is not None and (job.work is not None or self._prepare(job)):
            self._batcher.add(job)

    def _forward(self, batch: list[Job]) -> None:
        query = batch[0].query
        began = time.monotonic()
        self.running_since = began
        works = []
        for job in batch:
            job.started = began
            works.append(job.work)
        try:
            outcomes = self._strategies[query.strategy].forward(works)  # type: ignore[arg-type]
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes of {len(batch)} works")
        except Exception as error:
            self.running_since = None
            self._failed(batch, error)
            return
        ended = time.monotonic()
        self.running_since = None
        self.failures_in_a_row = 0
        self._batcher.observe(batch[0].key, len(batch), ended - began, ended)
        self._metrics.batch(query.strategy, len(batch), ended - began)
        for job, outcome in zip(batch, outcomes, strict=True):
            job.outcome = outcome
        self._finished.extend(batch)

    def _failed(self, batch: list[Job], error: Exception) -> None:
        """Run the works of a batch that failed one by one, so that only the culprit fails."""
        key = batch[0].key
        if len(batch) == 1:
            self.failures_in_a_row += 1
            log.error("forward of %s failed", key, exc_info=error)
            self._finish(batch[0], Refused("failed", f"forward raised {type(error).__name__}"))
            return
        log.warning("a batch of %d of %s failed, so one by one: %s", len(batch), key, error)
        for job in batch:
            if job.cancelled or job.deadline <= time.monotonic():
                self._finish(job, _dropped(job))
            else:
                self._forward([job])
            self._notify()


def _dropped(job: Job) -> Refused:
    """Why a job was dropped before its forward."""
    if job.cancelled:
        return Refused("cancelled", "the device no longer waits")
    late = time.monotonic() - job.deadline
    when = f"{late * 1e3:.0f} ms ago" if late >= 0 else f"in {-late * 1e3:.0f} ms, too soon to end"
    return Refused("expired", f"the deadline is {when}")
