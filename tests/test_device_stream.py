"""The stream and the library: order, width, the newest frame, any kind of picture."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigError, Refused
from common.messages import Query, Refusal, Result
from device import keeper
from device import picture as pictures
from device.connect import address, offboard_connect, offboard_connect_blocking
from device.source import Shot, Source
from device.strategy import Answer
from tests.device_run import run, slowly
from tests.device_stub import CLASSES, Stub, shade, write


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# The stream.


def test_replies_out_of_order_land_on_their_frames() -> None:
    labels = [0, 1, 2, 3] * 5
    held: list[tuple[Query, Any]] = []

    async def main() -> None:
        async with (
            Stub() as stub,
            offboard_connect(stub.address, strategy="raw") as offboard,
        ):
            classify = stub.classify
            channel_send: list[Any] = []

            def react(query: Query) -> Result | Refusal | None:
                # Answer in pairs, the later query first.
                held.append((query, classify(query)))
                if len(held) == 2:
                    from dataclasses import replace

                    assert stub._listener is not None
                    (channel,) = stub._listener.channels
                    for each, answer in reversed(held):
                        channel.send(replace(answer, id=each.id))
                        channel_send.append(each.id)
                    held.clear()
                return None

            stub.react = react
            answers = [answer async for answer in offboard.stream(slowly(labels, 0), 4)]
            assert [answer.label for answer in answers] == [CLASSES[label] for label in labels]
            assert [answer.frame for answer in answers] == [str(i) for i in range(20)]
            assert channel_send != sorted(channel_send)

    run(main)


@pytest.mark.parametrize(("strategy", "expected"), [("raw", 3), ("local", 1)])
def test_no_more_are_in_flight_than_allowed(strategy: str, expected: int) -> None:
    """The device's own answers come one after the other: each would only wait for the last."""
    most = 0
    flying = 0

    async def main() -> None:
        async with (
            Stub(local=True) as stub,
            offboard_connect(stub.address, strategy=strategy) as offboard,
        ):
            answer = offboard._answer

            async def watched(shot: Shot) -> Answer:
                nonlocal most, flying
                flying += 1
                most = max(most, flying)
                try:
                    await asyncio.sleep(0.002)
                    return await answer(shot)
                finally:
                    flying -= 1

            offboard._answer = watched  # type: ignore[method-assign]
            got = [a async for a in offboard.stream(slowly([0] * 40, 0), 3)]
            assert [a.label for a in got] == ["black"] * 40

    run(main)
    assert most == expected


def test_a_live_source_answers_the_newest_frame_only() -> None:
    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address, strategy="raw") as offboard:
            answer = offboard._answer

            async def slow(shot: Shot) -> Answer:
                await asyncio.sleep(0.05)
                return await answer(shot)

            offboard._answer = slow  # type: ignore[method-assign]
            source = slowly([1] * 100, 0.003, live=True)
            frames = [int(a.frame) async for a in offboard.stream(source, 1)]
            assert 3 < len(frames) < 60
            assert frames == sorted(frames)
            assert offboard.dropped >= 100 - len(frames) - 2

    run(main)


def test_a_decoder_that_breaks_in_its_own_way_costs_one_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(data: object, height: int, width: int) -> Any:
        raise EOFError("inside")

    monkeypatch.setattr(pictures, "load", broken)

    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address) as offboard:
            assert (await offboard.infer(b"odd")).error == "unreadable: inside"
            assert (await offboard.infer(shade(1))).label == "dark"

    run(main)


def test_a_stream_left_early_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with Stub() as stub:
            async with offboard_connect(stub.address, strategy="raw") as offboard:
                stream = offboard.stream(slowly([0] * 1000, 0.001), 4)
                async for _ in stream:
                    break
                await stream.aclose()
            await asyncio.sleep(0.05)
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert len(names) <= 2, names

    run(main)


def test_a_source_that_fails_is_an_error_after_its_frames() -> None:
    def shots() -> Iterator[Shot]:
        yield Shot(0, "0", shade(1))
        raise OSError("the card was pulled")

    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address, strategy="raw") as offboard:
            stream = offboard.stream(Source(shots), 4)
            assert (await anext(stream)).label == "dark"
            with pytest.raises(ConfigError, match="the card was pulled"):
                await anext(stream)

    run(main)


# The library.


def test_any_kind_of_picture_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, [2])[0]

    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address) as offboard:
            for picture in (path, str(path), path.read_bytes(), shade(2)):
                answer = await offboard.infer(picture)
                assert (answer.label, answer.strategy) == ("light", "amot")
            large = np.asarray(Image.fromarray(shade(2)).resize((300, 200)))
            assert (await offboard.infer(large, "big")).frame == "big"
            missing = await offboard.infer(tmp_path / "none.jpg")
            assert missing.error == "unreadable: No such file or directory"

    run(main)


def test_the_blocking_wrapper(tmp_path: Path) -> None:
    path = write(tmp_path, [3])[0]

    async def main() -> None:
        async with Stub() as stub:

            def blocking() -> str | None:
                with offboard_connect_blocking(stub.address, strategy="jpeg") as offboard:
                    return offboard.infer(path).label

            assert await asyncio.to_thread(blocking) == "white"

    run(main)


def test_a_bad_token_is_told_at_once() -> None:
    async def main() -> None:
        async with Stub(token="secret") as stub:
            with pytest.raises(Refused, match="bad token"):
                async with offboard_connect(stub.address, token="wrong"):
                    pass

    run(main)


def test_a_strategy_waits_for_the_files_it_needs() -> None:
    async def main() -> None:
        async with (
            Stub(local=True) as stub,
            offboard_connect(stub.address, strategy="local") as offboard,
        ):
            assert stub.fetched == ["", "device/local.onnx"]
            answer = await offboard.infer(shade(1))
            assert (answer.label, answer.source, answer.degraded) == ("dark", "device", None)

    run(main)


def test_files_of_other_strategies_are_never_fetched() -> None:
    async def main() -> None:
        async with Stub(local=True, computing=True) as stub:
            async with offboard_connect(stub.address, strategy="df") as offboard:
                assert stub.fetched == ["", "device/df.onnx"]
                await offboard.complete(5.0)
            assert stub.fetched == ["", "device/df.onnx", "device/local.onnx"]

    run(main)


def test_the_rest_of_the_bundle_delays_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "QUIET", 60.0)

    async def main() -> None:
        async with Stub(local=True) as stub, offboard_connect(stub.address) as offboard:
            assert stub.fetched == [""]
            await asyncio.sleep(0.05)
            assert stub.fetched == [""]
            await offboard.infer(shade(1))
            await offboard._keeper.complete.wait()
            assert stub.fetched == ["", "device/local.onnx"]

    run(main)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("host:1", ("host", 1)), ("[::1]:7070", ("::1", 7070)), ("10.0.0.1:80", ("10.0.0.1", 80))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        address(text)
