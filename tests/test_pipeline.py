"""Every frame gets an answer, in time, and it says how good it is: the pipeline on a fake link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.client import Reply
from common.codec import encode
from common.errors import ConfigError, Refused, Unavailable
from common.messages import Query, Refusal, Result
from device import inference, pipeline
from device.bundle import Bundle, Cache
from device.cost import Cost, Timed
from device.keeper import Gate
from device.link import Link
from device.pipeline import Pipeline
from device.planner import Choice, Planner
from device.strategy import Answer, Frame, Pixels
from tests.device_stub import Stub, local_model, manifest, shade

Reaction = Callable[[Query], Awaitable[Result]]


class FakeLink:
    """A client without a socket: `react` answers, or raises, or takes its time."""

    def __init__(self, react: Reaction | None = None, connected: bool = True) -> None:
        self.connected = connected
        self.asked: list[Query] = []
        self.deadlines: list[float | None] = []
        self.stub = Stub()
        self.react: Reaction = react or self.classify
        self.waiting = asyncio.Event()
        self.back = asyncio.Event()

    async def classify(self, query: Query) -> Result:
        answer = self.stub.classify(query)
        if isinstance(answer, Refusal):
            raise Refused(answer.code, answer.reason, retryable=answer.retryable)
        return answer

    rtt = 0.001

    async def ask(self, query: Query, deadline: float | None = None) -> Reply:
        query = replace(query, id=len(self.asked) + 1)
        self.asked.append(query)
        self.deadlines.append(deadline)
        if not self.connected:
            raise Unavailable("not connected")
        try:
            async with asyncio.timeout(deadline):
                result = await self.react(query)
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        return Reply(replace(result, id=query.id), 1000, 100, 3.0)

    async def wait_connected(self, timeout: float) -> None:
        self.waiting.set()
        try:
            async with asyncio.timeout(timeout):
                await self.back.wait()
        except TimeoutError:
            raise Unavailable("not connected within the patience") from None


class Bench:
    """A pipeline and what stands around it."""

    def __init__(self, root: Path, worker: ThreadPoolExecutor) -> None:
        self.root = root
        self.worker = worker

    def pipeline(
        self, link: FakeLink, strategy: str = "raw", *, local: bool = False, patience: float = 0.3,
        deadline: float | None = None, **params: Any,
    ) -> Pipeline:  # fmt: skip
        bundle = self.bundle(local)
        planner = Planner(bundle.manifest, Choice(strategy, params, deadline))
        return Pipeline(bundle, planner, link, self.worker, patience=patience, link=Link())

    def bundle(self, local: bool) -> Bundle:
        files = {"device/local.onnx": local_model()} if local else {}
        cache = Cache(self.root)
        bundle = cache.add(manifest(files))
        for file in bundle.missing():
            cache.put(bundle, file, files[file.path])
        return bundle


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(1) as worker:
        yield Bench(tmp_path, worker)


def answered(pipeline: Pipeline, label: int = 2, index: int = 7) -> Answer:
    async def main() -> Answer:
        await pipeline.prepare()  # as before any stream: the first frame need not wait for imports
        frame = Frame(index, f"{index}.jpg", shade(label), time.monotonic())
        return await pipeline.answer(frame)

    return asyncio.run(main())


async def never(query: Query) -> Result:
    await asyncio.sleep(30)
    raise AssertionError("never")


def test_an_answer_says_what_it_cost(bench: Bench) -> None:
    answer = answered(bench.pipeline(FakeLink(), "amot", threshold=1.0))
    assert (answer.label, answer.source, answer.strategy) == ("light", "edge", "amot")
    assert (answer.frame, answer.rounds) == ("7.jpg", 2)
    assert (answer.bytes_up, answer.bytes_down, answer.server_ms) == (2000, 200, 1.0)
    assert 0 < answer.device_ms <= answer.latency_ms
    assert (answer.deadline_met, answer.degraded, answer.error) == (True, None, None)


def test_the_servers_own_reason_is_passed_on(bench: Bench) -> None:
    async def degraded(query: Query) -> Result:
        probabilities = encode(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
        return Result("cloud", {"probabilities": probabilities}, degraded="edge overloaded")

    answer = answered(bench.pipeline(FakeLink(degraded)))
    assert (answer.source, answer.degraded, answer.label) == ("cloud", "edge overloaded", "white")


# The second round fails: the provisional answer stands.


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        Refused("forgotten", "no such frame"),
        Refused("busy", "queue full", retryable=True),
        Unavailable("link lost"),
    ],
)
def test_the_provisional_answer_stands(bench: Bench, error: Exception, local: bool) -> None:
    link = FakeLink()

    async def react(query: Query) -> Result:
        if query.step == "supply":
            raise error
        return await link.classify(query)

    link.react = react
    answer = answered(bench.pipeline(link, "amot", local=local))
    assert (answer.label, answer.rounds, answer.source) == ("light", 1, "edge")
    assert answer.degraded == f"second round failed: {error}"
    assert answer.bytes_up == 1000
    assert answer.error is None


def test_a_second_round_that_is_late_costs_no_answer(bench: Bench) -> None:
    link = FakeLink()

    async def react(query: Query) -> Result:
        return await (never(query) if query.step == "supply" else link.classify(query))

    link.react = react
    answer = answered(bench.pipeline(link, "amot", local=True, deadline=600.0))
    assert (answer.label, answer.rounds) == ("light", 1)
    assert answer.latency_ms < 700  # a starved machine may wake the loop late
    assert answer.degraded is not None
    first, second = link.deadlines
    assert first is not None
    assert second is not None
    assert first <= 0.3  # half the frame's time is the local model's
    assert 0.3 < second <= 0.6  # the provisional answer needs no time for a local one


# No answer from the server.


def test_the_local_model_answers_where_the_server_does_not(bench: Bench) -> None:
    async def react(query: Query) -> Result:
        raise Unavailable("link lost")

    link = FakeLink(react)
    answer = answered(bench.pipeline(link, "jpeg", local=True, patience=60.0))
    assert (answer.label, answer.source, answer.strategy) == ("light", "device", "local")
    assert answer.degraded == "server unavailable: link lost"
    assert answer.rounds == 0
    assert len(link.asked) == 1  # nobody waits where the local model can answer


def test_a_refusal_leads_to_the_local_model_too(bench: Bench) -> None:
    async def react(query: Query) -> Result:
        raise Refused("failed", "out of memory")

    answer = answered(bench.pipeline(FakeLink(react), local=True))
    assert (answer.label, answer.degraded) == ("light", "server refused: failed: out of memory")


def test_while_disconnected_nobody_is_asked(bench: Bench) -> None:
    link = FakeLink(connected=False)
    answer = answered(bench.pipeline(link, local=True, deadline=2000.0))
    assert (answer.source, answer.label) == ("device", "light")
    assert answer.degraded == "server unavailable: not connected"
    assert link.asked == []


@pytest.mark.parametrize("deadline", [60.0, 200.0])
def test_a_silent_server_is_given_up_before_the_deadline(bench: Bench, deadline: float) -> None:
    answer = answered(bench.pipeline(FakeLink(never), deadline=deadline))
    assert answer.label is None
    assert answer.error is not None
    assert answer.error.startswith("unavailable: ")
    assert answer.latency_ms < deadline + 100  # a starved machine may wake the loop late
    assert not answer.deadline_met


def test_the_local_model_is_left_its_time(bench: Bench) -> None:
    made = bench.pipeline(FakeLink(never), local=True, deadline=1500.0)
    answered(made)  # loads the model
    made = bench.pipeline(FakeLink(never), local=True, deadline=400.0)
    asyncio.run(made._strategy("local"))
    answer = answered(made)
    assert (answer.label, answer.source, answer.deadline_met) == ("light", "device", True)
    assert answer.degraded is not None


def test_a_slow_local_model_does_not_break_the_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Any:
        def model(pixels: Pixels) -> Any:
            time.sleep(0.4)
            return np.zeros(4, np.float32)

        return model

    monkeypatch.setattr(inference, "load", load)
    answer = answered(bench.pipeline(FakeLink(connected=False), local=True, deadline=100.0))
    assert answer.latency_ms < 250
    assert (answer.label, answer.deadline_met) == (None, False)
    assert answer.error == "unavailable: the local model did not finish in time"


def test_without_a_runtime_the_answer_says_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(path: Path) -> Any:
        raise ConfigError("pip install onnxruntime")

    async def react(query: Query) -> Result:
        raise Refused("failed", "out of memory")

    monkeypatch.setattr(inference, "load", load)
    made = bench.pipeline(FakeLink(react), local=True)
    for _ in range(2):
        answer = answered(made)
        assert answer.label is None
        assert answer.error is not None
        assert "out of memory" in answer.error
    assert [r.message for r in caplog.records] == ["no local answers: pip install onnxruntime"]


# No local model: patience.


def test_a_frame_waits_for_a_link_that_just_went_down(bench: Bench) -> None:
    link = FakeLink(connected=False)

    async def main() -> Answer:
        made = bench.pipeline(link, patience=5.0)
        made.down_since = time.monotonic()
        task = asyncio.create_task(made.answer(Frame(0, "0", shade(1), time.monotonic())))
        await link.waiting.wait()
        link.connected = True
        link.back.set()
        return await task

    answer = asyncio.run(main())
    assert (answer.label, answer.degraded, answer.error) == ("dark", None, None)


def test_patience_is_spent_once_not_by_every_frame(bench: Bench) -> None:
    link = FakeLink(connected=False)

    async def main() -> list[Answer]:
        made = bench.pipeline(link, patience=0.2)
        made.down_since = time.monotonic()
        frames = [Frame(i, str(i), shade(1), time.monotonic()) for i in range(20)]
        return [await made.answer(replace(f, captured=time.monotonic())) for f in frames]

    answers = asyncio.run(main())
    assert all(a.error is not None and a.error.startswith("unavailable: ") for a in answers)
    assert 100 < answers[0].latency_ms < 400
    assert sum(answer.latency_ms for answer in answers[1:]) < 100


def test_a_busy_server_is_asked_again(bench: Bench) -> None:
    link = FakeLink()

    async def react(query: Query) -> Result:
        if len(link.asked) < 3:
            raise Refused("busy", "queue full", retryable=True)
        return await link.classify(query)

    link.react = react
    answer = answered(bench.pipeline(link, patience=5.0))
    assert (answer.label, answer.error, len(link.asked)) == ("light", None, 3)


def test_a_final_refusal_is_not_asked_again(bench: Bench) -> None:
    async def react(query: Query) -> Result:
        raise Refused("bad", "not such a frame")

    link = FakeLink(react)
    answer = answered(bench.pipeline(link, patience=5.0))
    assert (answer.label, answer.error) == (None, "refused: bad: not such a frame")
    assert len(link.asked) == 1


def test_a_server_that_stays_silent_for_ever_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ANSWER_WAIT", 0.1)
    answer = answered(bench.pipeline(FakeLink(never), patience=0.1))
    assert answer.error is not None
    assert answer.error.startswith("unavailable: ")


# What must not happen.


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"probabilities": encode(np.zeros(3, np.float32))},
        {"probabilities": encode(np.full(4, np.nan, np.float32))},
        {"probabilities": replace(encode(np.zeros(4, np.float32)), codec="odd")},
    ],
)
def test_an_unusable_result_is_an_error(bench: Bench, tensors: dict[str, Any]) -> None:
    async def react(query: Query) -> Result:
        return Result("edge", tensors)

    answer = answered(bench.pipeline(FakeLink(react)))
    assert answer.label is None
    assert answer.error is not None
    assert answer.error.startswith("protocol: ")


def test_a_bug_in_a_strategy_costs_one_frame(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from device.strategies import raw

    def broken(*arguments: object) -> Any:
        raise KeyError("oops")

    made = bench.pipeline(FakeLink())
    with monkeypatch.context() as patch:
        patch.setattr(raw, "encode", broken)
        answer = answered(made)
    assert answer.error == "internal error: KeyError('oops')"
    assert "strategy raw failed" in caplog.text
    assert answered(made).label == "light"


def test_a_server_with_another_profile_is_not_asked() -> None:
    class Other:
        connected = True
        welcome = type("Welcome", (), {"digest": "new"})

        async def ask(self, query: Query, deadline: float | None) -> Reply:
            raise AssertionError("asked")

        async def wait_connected(self, timeout: float) -> None:
            pass

    async def main() -> None:
        gate = Gate(Other(), "old")  # type: ignore[arg-type]
        assert not gate.connected
        with pytest.raises(Unavailable, match="another profile"):
            await gate.ask(Query("raw", "whole"))
        with pytest.raises(Unavailable, match="another profile"):
            await gate.wait_connected(1.0)

    asyncio.run(main())


def test_cpu_time_is_counted_without_the_others() -> None:
    def spin(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    async def works() -> str:
        spin(0.02)
        await asyncio.sleep(0.01)
        spin(0.02)
        return "done"

    async def others() -> None:
        for _ in range(5):
            spin(0.02)
            await asyncio.sleep(0)

    async def main() -> float:
        cost = Cost()
        other = asyncio.create_task(others())
        assert await Timed(works(), cost) == "done"
        await other
        return cost.device_ms

    assert 39 < asyncio.run(main()) < 60


def test_a_cancelled_frame_cancels_its_query(bench: Bench) -> None:
    cancelled: list[bool] = []

    async def react(query: Query) -> Result:
        try:
            return await never(query)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        made = bench.pipeline(FakeLink(react))
        task = asyncio.create_task(made.answer(Frame(0, "0", shade(1), time.monotonic())))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cancelled == [True]


def test_with_a_deadline_the_local_model_is_timed_beforehand(bench: Bench) -> None:
    made = bench.pipeline(FakeLink(never), local=True, deadline=1000.0)
    asyncio.run(made.rehearse())
    link = FakeLink(never)
    made._client = link
    answer = answered(made)
    assert (answer.label, answer.source, answer.deadline_met) == ("light", "device", True)
    (deadline,) = link.deadlines
    assert deadline is not None
    assert deadline > 0.6  # a local model this fast leaves the server nearly all of it


def test_without_a_deadline_no_runtime_is_loaded_for_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(inference, "load", load)
    asyncio.run(bench.pipeline(FakeLink(), local=True).rehearse())


def test_one_slow_run_of_the_local_model_does_not_rob_the_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = [0.5, 0.0, 0.0, 0.0, 0.0]

    def load(path: Path) -> Any:
        def model(pixels: Pixels) -> Any:
            time.sleep(pauses.pop(0) if pauses else 0.0)
            return np.array([0.1, 0.1, 0.7, 0.1], np.float32)

        return model

    monkeypatch.setattr(inference, "load", load)
    link = FakeLink()
    made = bench.pipeline(link, local=True, deadline=1000.0)
    asyncio.run(made.rehearse())
    answered(made)
    (deadline,) = link.deadlines
    assert deadline is not None
    assert deadline > 0.7


@pytest.mark.parametrize("connected", [True, False])
def test_without_a_server_the_local_model_is_loaded_before_the_first_frame(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr(inference, "load", loaded.append)
    asyncio.run(bench.pipeline(FakeLink(connected=connected), local=True).prepare())
    assert len(loaded) == (0 if connected else 1)
