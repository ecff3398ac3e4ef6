"""The executor: one thread, continuous batches, and failures that stay with their query."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import pytest

from common.errors import Refused
from common.messages import Query
from server.batcher import Batcher
from server.executor import Executor, Job
from server.metrics import Metrics
from server.strategy import Memory, Work
from tests.serving import WAIT, Scripted, query


class Bench:
    """An executor and the jobs it gave back."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.done: list[Job] = []
        self._news = asyncio.Event()

    def submit(self, asked: Query | None = None, left: float = inf, strategy: str = "") -> Job:
        now = time.monotonic()
        job = Job(asked or query(), self._finished, arrived=now, deadline=now + left)
        self.executor.submit(job)
        return job

    def _finished(self, job: Job) -> None:
        assert job not in self.done
        self.done.append(job)
        self._news.set()

    async def finished(self, count: int) -> list[Job]:
        """The first `count` jobs given back."""
        async with asyncio.timeout(WAIT):
            while len(self.done) < count:
                self._news.clear()
                await self._news.wait()
        return self.done[:count]


def drive(strategy: Any, test: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    """Run `test` with an executor of `strategy`."""

    async def main() -> None:
        executor = Executor({"scripted": strategy}, **options)
        await executor.start()
        try:
            await test(Bench(executor))
        finally:
            await executor.stop()
        assert executor.pending == 0

    asyncio.run(main())


async def entered(strategy: Scripted) -> None:
    """Wait for the next forward to begin."""
    assert await asyncio.to_thread(strategy.entered.wait, WAIT)
    strategy.entered.clear()


def code(job: Job) -> str:
    assert job.outcome is None
    assert job.refused is not None
    return job.refused.code


@pytest.mark.parametrize("threads", [0, 2])
def test_nothing_computes_on_the_loop(threads: int) -> None:
    strategy = Scripted()

    async def test(bench: Bench) -> None:
        bench.submit(query(3))
        (job,) = await bench.finished(1)
        assert job.outcome is not None
        assert job.outcome.probabilities.tolist() == [3.0, 1.0]
        assert job.arrived <= job.started <= time.monotonic()
        assert threading.current_thread().name not in strategy.threads
        assert strategy.warmed == 1

    drive(strategy, test, prepare_threads=threads)


def test_what_arrives_during_a_forward_makes_the_next_batch() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(bench: Bench) -> None:
        bench.submit(query(0))
        await entered(strategy)
        for value in (1, 2, 3):
            bench.submit(query(value))
        bench.submit(query(9, group=1))
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(5)
        assert strategy.forwards == [[0], [1, 2, 3], [9]]

    drive(strategy, test)


def test_a_refused_query_does_not_harm_its_neighbours() -> None:
    def refuse(asked: Query) -> None:
        if asked.tensors["x"].data[0] == 2:
            raise Refused("bad", "no twos")
        if asked.tensors["x"].data[0] == 4:
            raise ZeroDivisionError

    strategy = Scripted(hold=threading.Event(), on_prepare=refuse)

    async def test(bench: Bench) -> None:
        bench.submit(query(0))
        await entered(strategy)
        jobs = [bench.submit(query(value)) for value in (1, 2, 3, 4)]
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(5)
        assert strategy.forwards == [[0], [1, 3]]
        assert code(jobs[1]) == "bad"
        assert code(jobs[3]) == "failed"

    drive(strategy, test)


def test_a_poisoned_work_fails_alone_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = Scripted(hold=threading.Event(), poison=2)

    async def test(bench: Bench) -> None:
        bench.submit(query(0))
        await entered(strategy)
        jobs = [bench.submit(query(value)) for value in (1, 2, 3)]
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(4)
        assert strategy.forwards == [[0], [1, 2, 3], [1], [2], [3]]
        assert [job.outcome is not None for job in jobs] == [True, False, True]
        assert code(jobs[1]) == "failed"
        bench.submit(query(5))
        assert (await bench.finished(5))[-1].outcome is not None

    with caplog.at_level(logging.WARNING):
        drive(strategy, test)
    assert "poison among [2]" in caplog.text


def test_failures_in_a_row_are_counted() -> None:
    strategy = Scripted(poison=7)

    async def test(bench: Bench) -> None:
        for count in (1, 2):
            bench.submit(query(7))
            await bench.finished(count)
        assert bench.executor.failures_in_a_row == 2
        bench.submit(query(1))
        await bench.finished(3)
        assert bench.executor.failures_in_a_row == 0

    drive(strategy, test)


class TooFew(Scripted):
    """Forgets an outcome."""

    def forward(self, works: Any) -> Any:
        return super().forward(works)[1:]


def test_outcomes_that_are_missing_are_a_failure() -> None:
    async def test(bench: Bench) -> None:
        bench.submit()
        assert code((await bench.finished(1))[0]) == "failed"

    drive(TooFew(), test)


@pytest.mark.parametrize("threads", [0, 1])
def test_late_and_cancelled_jobs_never_reach_the_accelerator(threads: int) -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(bench: Bench) -> None:
        bench.submit(query(0))
        await entered(strategy)
        late = bench.submit(query(1), left=0.01)
        cancelled = bench.submit(query(2))
        cancelled.cancelled = True
        live = bench.submit(query(3), left=WAIT)
        await asyncio.sleep(0.02)
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(4)
        assert strategy.forwards == [[0], [3]]
        assert (code(late), code(cancelled)) == ("expired", "cancelled")
        assert live.outcome is not None

    drive(strategy, test, prepare_threads=threads)


def test_a_long_inbox_is_not_decoded_before_the_accelerator_gets_work() -> None:
    prepared: list[int] = []
    strategy = Scripted(
        hold=threading.Event(), on_prepare=lambda q: prepared.append(len(strategy.forwards))
    )

    async def test(bench: Bench) -> None:
        bench.submit(query(0))
        await entered(strategy)
        for value in range(40):
            bench.submit(query(value))
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(41)
        assert max(prepared.count(forwards) for forwards in set(prepared)) <= 1 + 4 * 2
        assert max(map(len, strategy.forwards)) == 2

    drive(strategy, test, max_batch=2)


def test_it_is_full_at_its_limit_and_empties() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(bench: Bench) -> None:
        for value in range(3):
            assert not bench.executor.full
            bench.submit(query(value))
        assert bench.executor.full
        assert strategy.hold is not None
        strategy.hold.set()
        await bench.finished(3)
        assert not bench.executor.full

    drive(strategy, test, limit=3)


def test_stopping_ends_the_running_forward_and_refuses_the_rest() -> None:
    strategy = Scripted(hold=threading.Event())

    async def test(bench: Bench) -> None:
        running = bench.submit(query(0))
        await entered(strategy)
        waiting = [bench.submit(query(value)) for value in (1, 2)]
        stopping = asyncio.create_task(bench.executor.stop())
        await asyncio.sleep(0)
        assert strategy.hold is not None
        strategy.hold.set()
        await stopping
        await bench.finished(3)
        assert running.outcome is not None
        for job in waiting:
            assert code(job) == "draining"
            assert job.refused is not None
            assert job.refused.retryable

    drive(strategy, test)


def test_a_batch_held_back_runs_when_its_time_is_over() -> None:
    """Two sources ask in step, then one does not come: the other is not held beyond max_wait."""
    strategy = Scripted()
    max_wait = 0.05

    async def test(bench: Bench) -> None:
        for _ in range(6):
            now = time.monotonic()
            for source in "ab":
                job = Job(query(), bench._finished, arrived=now, source=source)
                bench.executor.submit(job)
            await bench.finished(len(bench.done) + 2)
        bench.submit(query(9))
        alone = (await bench.finished(13))[-1]
        assert max_wait * 0.9 <= alone.started - alone.arrived < WAIT / 2

    drive(strategy, test, max_wait=max_wait)


class Unwarmable(Scripted):
    """Cannot run at all."""

    def warm(self) -> None:
        raise MemoryError("no room")


def test_what_fails_to_warm_does_not_start() -> None:
    async def main() -> None:
        executor = Executor({"scripted": Unwarmable()})
        with pytest.raises(MemoryError, match="no room"):
            await executor.start()
        await executor.stop()

    asyncio.run(main())


class Unhashable(Scripted):
    """Makes a key of what the device sent, which may be a list."""

    def prepare(self, asked: Query, memory: Memory) -> Work:
        return Work(([],), {})  # type: ignore[arg-type]


def test_a_key_that_is_no_key_fails_alone() -> None:
    async def test(bench: Bench) -> None:
        bench.submit()
        assert code((await bench.finished(1))[0]) == "failed"

    drive(Unhashable(), test)


def test_the_death_of_the_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, now: float) -> None:
        raise AssertionError("a bug")

    async def main() -> None:
        died: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        executor = Executor({"scripted": Scripted()}, on_death=died.set_result)
        await executor.start()
        monkeypatch.setattr(Batcher, "take", broken)
        Bench(executor).submit()
        async with asyncio.timeout(WAIT):
            assert "a bug" in str(await died)
        await executor.stop()

    asyncio.run(main())


def test_batches_are_counted() -> None:
    strategy, metrics = Scripted(), Metrics()

    async def test(bench: Bench) -> None:
        bench.submit()
        await bench.finished(1)

    drive(strategy, test, metrics=metrics)
    assert sum(metrics.sizes["scripted"].counts) == 1
    assert metrics.compute["scripted"].sum > 0
