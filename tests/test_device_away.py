"""The server goes and comes: every frame still gets its answer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from device.connect import offboard_connect
from device.strategy import Answer
from tests.device_run import offline, program, run, slowly
from tests.device_stub import CLASSES, Stub, manifest, shade, write

LABELS = [0, 1, 2, 3, 2, 1, 0, 3, 3, 0]
NAMES = [CLASSES[label] for label in LABELS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_server_or_a_bundle_every_frame_is_unavailable(tmp_path: Path) -> None:
    write(tmp_path / "in", LABELS)
    started = time.monotonic()
    status, out, _ = offline(
        *("--server", "127.0.0.1:9", "--source", str(tmp_path / "in")),
        *("--patience", "0.3", "--json"),
    )
    answers = [json.loads(text) for text in out.splitlines()]
    assert status == 1
    assert [answer["frame"] for answer in answers] == [f"{i:04}.png" for i in range(10)]
    for answer in answers:
        assert answer["label"] is None
        assert answer["error"].startswith("unavailable: ")
        assert answer["deadline_met"] is False
    assert time.monotonic() - started < 20


def test_a_device_started_without_a_server_answers_by_the_cached_bundle(tmp_path: Path) -> None:
    write(tmp_path / "in", LABELS)
    stub = Stub(local=True)
    source = ("--source", str(tmp_path / "in"), "--strategy", "jpeg", "--json")
    assert program(stub, *source)[0] == 0
    assert stub.fetched == ["", "device/local.onnx"]
    status, out, err = offline(
        "--server", stub.address, *source, "--patience", "0.2", "--deadline", "2000"
    )
    answers = [json.loads(text) for text in out.splitlines()]
    assert status == 0, err
    assert [answer["label"] for answer in answers] == NAMES
    for answer in answers:
        assert (answer["source"], answer["strategy"]) == ("device", "local")
        assert answer["degraded"] == "server unavailable: not connected"
        assert answer["deadline_met"] is True


def test_the_second_start_fetches_nothing(tmp_path: Path) -> None:
    write(tmp_path / "in", [0])
    stub = Stub(local=True)
    for _ in range(2):
        assert program(stub, "--source", str(tmp_path / "in"), "--json")[0] == 0
    assert stub.fetched == ["", "device/local.onnx"]


@pytest.mark.parametrize("strategy", ["amot", "raw"])
def test_the_server_goes_and_comes_amid_a_stream_with_a_local_model(strategy: str) -> None:
    labels = [index % 4 for index in range(120)]
    answers: list[Answer] = []

    async def main() -> None:
        async with (
            Stub(local=True) as stub,
            offboard_connect(stub.address, strategy=strategy, deadline_ms=3000.0) as offboard,
        ):
            await offboard.infer(shade(0))
            await offboard.complete(5.0)
            async for answer in offboard.stream(slowly(labels, 0.01), 4):
                answers.append(answer)
                if len(answers) == 20:
                    await stub.stop()
                if len(answers) == 60:
                    await stub.start()
                    await offboard._client.wait_connected(20.0)

    run(main)
    assert [answer.label for answer in answers] == [CLASSES[label] for label in labels]
    sources = [answer.source for answer in answers]
    assert sources[:15] == ["edge"] * 15
    assert sources[30:50] == ["device"] * 20
    assert sources[-20:] == ["edge"] * 20
    for answer in answers:
        assert (answer.degraded is None) == (answer.rounds == (2 if strategy == "amot" else 1))
        assert answer.deadline_met


def test_the_server_goes_amid_a_stream_without_a_local_model() -> None:
    answers: list[Answer] = []

    async def main() -> None:
        async with (
            Stub() as stub,
            offboard_connect(stub.address, strategy="raw", patience=0.3) as offboard,
        ):
            async for answer in offboard.stream(slowly([1] * 60, 0.01), 4):
                answers.append(answer)
                if len(answers) == 10:
                    await stub.stop()

    run(main)
    assert [answer.label for answer in answers[:8]] == ["dark"] * 8
    for answer in answers[20:]:
        assert answer.error is not None
        assert answer.error.startswith("unavailable: ")


def test_a_short_restart_costs_no_frame_of_a_stored_source() -> None:
    answers: list[Answer] = []

    async def main() -> None:
        async with (
            Stub() as stub,
            offboard_connect(stub.address, strategy="amot", patience=20.0) as offboard,
        ):
            async for answer in offboard.stream(slowly([index % 4 for index in range(60)], 0), 4):
                answers.append(answer)
                if len(answers) in (10, 30):
                    await stub.stop()
                    await stub.start()

    run(main)
    assert [answer.label for answer in answers] == [CLASSES[index % 4] for index in range(60)]
    assert all(answer.error is None for answer in answers)


def test_a_server_that_comes_late_is_used(own_cache: Path) -> None:
    async def main() -> None:
        stub = Stub()
        async with stub:
            pass
        async with offboard_connect(stub.address, strategy="raw", patience=0.1) as offboard:
            first = await offboard.infer(shade(1), "one")
            assert first.error is not None
            assert "no bundle" in first.error
            async with stub:
                await offboard._client.wait_connected(20.0)
                answer = await offboard.infer(shade(1), "two")
                while answer.label is None:
                    answer = await offboard.infer(shade(1), "two")
            assert (answer.label, answer.source) == ("dark", "edge")

    run(main)


def test_a_server_that_comes_back_with_another_profile_is_followed() -> None:
    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address, strategy="raw") as offboard:
            assert (await offboard.infer(shade(3))).label == "white"
            await stub.stop()
            stub.manifest = manifest({}, name="other")
            object.__setattr__(stub.manifest, "classes", ("a", "b", "c", "d"))
            await stub.start()
            for _ in range(5):
                answer = await offboard.infer(shade(3))
                assert (answer.label, answer.error) == ("d", None)
            assert offboard._pipeline is not None
            assert offboard._pipeline.bundle.manifest.name == "other"

    run(main)
