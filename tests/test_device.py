"""The device program and library, against a stand-in server over real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigError, Refused
from common.messages import Query, Refusal, Result
from device import inference
from device import picture as pictures
from device.cli import parameters
from device.library import address, offboard_connect, offboard_connect_blocking
from device.output import Printer, Summary, line, record
from device.pipeline import failed
from device.source import Shot, Source
from device.strategy import Answer
from tests.device_stub import CLASSES, Stub, manifest, shade, write

ROOT = Path(__file__).resolve().parent.parent
LABELS = [0, 1, 2, 3, 2, 1, 0, 3, 3, 0]
NAMES = [CLASSES[label] for label in LABELS]
GOLDEN = {
    "frame": "0001.jpg",
    "label": "dark",
    "prob": 0.7,
    "top": [["dark", 0.7], ["black", 0.1]],
    "source": "edge",
    "strategy": "amot",
    "rounds": 2,
    "bytes_up": 1500,
    "bytes_down": 200,
    "latency_ms": 12.346,
    "device_ms": 0.2,
    "server_ms": 3.0,
    "deadline_met": True,
    "degraded": None,
    "error": None,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


async def start(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "device"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        **options,
    )


async def ended(process: asyncio.subprocess.Process, data: bytes = b"") -> tuple[int, str, str]:
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def program(stub: Stub, *arguments: str, data: bytes = b"") -> tuple[int, str, str]:
    """Run the program against `stub`: its status and what it printed."""

    async def main() -> tuple[int, str, str]:
        async with stub:
            return await ended(await start("--server", stub.address, *arguments), data)

    return asyncio.run(main())


def offline(*arguments: str) -> tuple[int, str, str]:
    async def main() -> tuple[int, str, str]:
        return await ended(await start(*arguments))

    return asyncio.run(main())


# What is printed.


def test_the_json_object_is_stable() -> None:
    answer = Answer(
        "dark",
        0.7,
        (("dark", 0.7), ("black", 0.1)),
        "edge",
        "amot",
        2,
        frame="0001.jpg",
        bytes_up=1500,
        bytes_down=200,
        latency_ms=12.3456,
        device_ms=0.2,
        server_ms=3.0,
    )
    assert record(answer) == GOLDEN
    assert list(record(answer)) == list(GOLDEN)
    assert record(failed("unavailable: gone", strategy="amot"))["label"] is None


def test_the_keys_are_documented() -> None:
    text = (ROOT / "docs" / "device.md").read_text()
    for key in GOLDEN:
        assert f"| `{key}` |" in text, key


def test_a_line_says_what_is_wrong() -> None:
    assert line(failed("unavailable: gone", strategy="raw", frame="x.jpg")) == (
        "x.jpg  no answer: unavailable: gone"
    )
    answer = Answer("dark", 0.7, (), "device", "local", 0, degraded="server away", frame="x")
    assert "dark 70.0%" in line(answer)
    assert "degraded: server away" in line(answer)
    assert "(late)" in line(
        Answer("dark", 0.7, (), "edge", "raw", 1, frame="x", deadline_met=False)
    )


def test_the_summary_counts() -> None:
    summary = Summary()
    summary.add(Answer("dark", 0.7, (), "edge", "amot", 2, bytes_up=100, latency_ms=10.0))
    summary.add(Answer("dark", 0.7, (), "device", "local", 0, degraded="away", latency_ms=20.0))
    summary.add(failed("unavailable: gone", strategy="amot"))
    table = summary.table(dropped=4)
    for text in (
        "frames              3 in",
        "edge/amot 1, device/local 1",
        "degraded            1",
    ):
        assert text in table
    assert "without an answer   1" in table
    assert "dropped unseen      4" in table
    assert "bytes up a frame    50" in table


def test_the_bar_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    answer = failed("x", strategy="raw")
    for as_json, total, drawn in ((False, 4, True), (True, 4, False), (False, None, False)):
        bar = Terminal()
        printer = Printer(as_json=as_json, total=total, bar=bar)  # type: ignore[arg-type]
        printer.answer(answer, 2)
        printer.clear()
        assert ("[############............] 2/4" in bar.text) is drawn
    Printer(as_json=False, total=4).answer(answer, 2)
    assert capsys.readouterr().err == ""


# The program.


@pytest.mark.parametrize("strategy", ["amot", "jpeg", "raw", "local"])
def test_a_folder_is_answered_in_order(tmp_path: Path, strategy: str) -> None:
    write(tmp_path / "in", LABELS, ".jpg")
    status, out, err = program(
        Stub(local=True), "--source", str(tmp_path / "in"), "--strategy", strategy, "--json"
    )
    assert status == 0, err
    answers = [json.loads(text) for text in out.splitlines()]
    assert all(answer.keys() == GOLDEN.keys() for answer in answers)
    assert [answer["frame"] for answer in answers] == [f"{i:04}.jpg" for i in range(10)]
    assert [answer["label"] for answer in answers] == NAMES
    for answer in answers:
        assert answer["strategy"] == strategy
        assert answer["rounds"] == {"amot": 2, "local": 0}.get(strategy, 1)
        assert (answer["bytes_up"] > 0) == (strategy != "local")
        assert answer["deadline_met"] is True
        assert answer["error"] is answer["degraded"] is None


def test_people_get_lines_and_a_table(tmp_path: Path) -> None:
    write(tmp_path / "in", LABELS[:3])
    status, out, _ = program(Stub(), "--source", str(tmp_path / "in"), "--strategy", "raw")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("0000.png  black 70.0%  edge/raw, 1 round")
    assert any(text.startswith("frames") and "3 in" in text for text in lines)
    assert any(text.startswith("latency p50, p95") for text in lines)


def test_parameters_reach_the_strategy(tmp_path: Path) -> None:
    write(tmp_path / "in", [1])
    stub = Stub()
    arguments = ("--strategy", "amot", "--set", "threshold=0,r1=0.5", "--set=codec=raw", "--json")
    status, out, err = program(stub, "--source", str(tmp_path / "in"), *arguments)
    assert status == 0, err
    assert json.loads(out)["rounds"] == 1
    (query,) = stub.queries
    assert query.params["threshold"] == 0
    assert query.tensors["patches"].shape == (8, 768)
    assert query.tensors["patches"].codec == "raw"


def test_an_unreadable_file_costs_one_answer(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", LABELS[:4])
    paths[1].write_bytes(b"no picture")
    paths[2].write_bytes(b"")
    status, out, _ = program(Stub(), "--source", str(tmp_path / "in"), "--json")
    answers = [json.loads(text) for text in out.splitlines()]
    assert status == 1
    assert [answer["label"] for answer in answers] == ["black", None, None, "white"]
    assert answers[1]["error"].startswith("unreadable: ")
    assert answers[2]["error"] == "unreadable: the file is empty"
    assert answers[1]["frame"] == "0001.png"


def test_pictures_on_standard_input(tmp_path: Path) -> None:
    paths = write(tmp_path, LABELS[:3], ".jpg") + write(tmp_path / "more", [1])
    data = b"".join(path.read_bytes() for path in paths)
    status, out, err = program(Stub(), "--source", "-", "--json", data=data)
    assert status == 0, err
    answers = [json.loads(text) for text in out.splitlines()]
    assert [answer["frame"] for answer in answers] == ["0", "1", "2", "3"]
    assert [answer["label"] for answer in answers] == ["black", "dark", "light", "dark"]


def test_no_picture_at_all_is_an_error() -> None:
    status, out, err = program(Stub(), "--source", "-", "--json", data=b"nothing")
    assert (status, out) == (2, "")
    assert "gave no picture" in err


def test_the_process_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    write(tmp_path / "in", [1, 2], ".jpg")
    code = (
        "import sys; from device.device import main; status = main();"
        "heavy = {'torch', 'onnxruntime', 'PIL', 'cv2', 'onnx'} & set(sys.modules);"
        "print(status, sorted(heavy), file=sys.stderr)"
    )

    async def main(strategy: str) -> str:
        async with Stub(local=True) as stub:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, "--server", stub.address, "--log", "error"),
                *("--source", str(tmp_path / "in"), "--strategy", strategy),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            _, out, err = await ended(process)
            assert "dark" in out
            return err

    for strategy in ("raw", "amot", "jpeg"):
        assert asyncio.run(main(strategy)) == "0 []\n"
    assert asyncio.run(main("local")) == "0 ['onnxruntime']\n"


def test_the_three_ways_to_start_it(tmp_path: Path) -> None:
    script = str(ROOT / "device" / "device.py")
    console = str(Path(sys.executable).parent / "offboard-device")
    for command in ([sys.executable, script], [sys.executable, "-m", "device"], [console]):
        done = subprocess.run(
            [*command, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: offboard-device")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--source", "."], "server is not set"),
        (["--server", "host", "--source", "{}"], "give HOST:PORT"),
        (["--server", "host:99999", "--source", "{}"], "give HOST:PORT"),
        (["--server", "host:1"], "source is not set"),
        (["--server", "host:1", "--source", "{}/none"], "nothing that exists"),
        (["--server", "host:1", "--source", "{}", "--strategy", "magic"], "choose one of amot"),
        (
            ["--server", "host:1", "--source", "{}", "--strategy", "jpeg", "--set", "r1=2"],
            "'jpeg' has no parameter 'r1'",
        ),
        (["--server", "host:1", "--source", "{}", "--set", "quality"], "give KEY=VALUE"),
        (["--server", "host:1", "--source", "{}", "--deadline", "-5"], "above zero"),
        (["--server", "host:1", "--source", "{}", "--deadline", "soon"], "no float"),
        (["--server", "host:1", "--source", "{}", "--in-flight", "-1"], "--in-flight"),
        (["--server", "host:1", "--source", "{}", "--patience", "-1"], "--patience"),
        (["--server", "host:1", "--source", "{}", "--token-file", "/none"], "--token-file /none"),
        (["--server", "host:1", "--source", "camera:x"], "camera:0"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    from device.device import main

    write(tmp_path / "in", [0])
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert main([text.format(tmp_path / "in") for text in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("offboard-device: ")
    assert complaint in captured.err


def test_a_strategy_that_the_profile_lacks_is_a_wrong_argument(tmp_path: Path) -> None:
    write(tmp_path / "in", [0])
    status, out, err = program(Stub(), "--source", str(tmp_path / "in"), "--strategy", "local")
    assert (status, out) == (2, "")
    assert "does not offer 'local': choose one of amot, jpeg, raw" in err


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    write(tmp_path / "in", [0])
    (tmp_path / "token").write_text("secret\n")
    source = ("--source", str(tmp_path / "in"), "--json")
    assert program(Stub(token="secret"), *source, "--token-file", str(tmp_path / "token"))[0] == 0
    status, out, err = program(Stub(token="secret"), *source)
    assert (status, out) == (2, "")
    assert "bad token" in err


def test_an_interrupt_ends_with_a_summary(tmp_path: Path) -> None:
    picture = write(tmp_path, [1])[0].read_bytes()

    async def main(number: signal.Signals) -> tuple[int, str, str]:
        async with Stub() as stub:
            process = await start("--server", stub.address, "--source", "-", "--live")
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(picture)
            async with asyncio.timeout(30):
                first = await process.stdout.readline()
            assert b"dark" in first
            process.send_signal(number)
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
            rest = await process.stdout.read()
            assert process.returncode is not None
            return process.returncode, rest.decode(), ""

    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        status, out, _ = asyncio.run(main(number))
        assert status == expected
        assert "1 in" in out


def test_a_reader_that_leaves_is_no_catastrophe(tmp_path: Path) -> None:
    write(tmp_path / "in", [0] * 40)

    async def main() -> tuple[int | None, bytes]:
        async with Stub() as stub:
            process = await start("--server", stub.address, "--source", str(tmp_path / "in"))
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout._transport.close()  # type: ignore[attr-defined]
            try:
                async with asyncio.timeout(30):
                    err = await process.stderr.read()
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
            return process.returncode, err

    status, err = asyncio.run(main())
    assert status == 1
    assert b"Traceback" not in err


# The server goes and comes.


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


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())


def slowly(labels: list[int], gap: float, live: bool = False) -> Source:
    def shots() -> Iterator[Shot]:
        for index, label in enumerate(labels):
            yield Shot(index, str(index), shade(label), time.monotonic() if live else None)
            time.sleep(gap)

    return Source(shots, live=live)


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


def test_no_more_are_in_flight_than_allowed() -> None:
    most = 0
    flying = 0

    async def main() -> None:
        async with Stub() as stub, offboard_connect(stub.address, strategy="raw") as offboard:
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
            assert len(got) == 40

    run(main)
    assert most == 3


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


def test_answers_of_the_device_itself_come_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(path: Path) -> Any:
        def model(pixels: Any) -> Any:
            time.sleep(0.3)
            return np.array([0.7, 0.1, 0.1, 0.1], np.float32)

        return model

    monkeypatch.setattr(inference, "load", load)

    async def main() -> None:
        async with (
            Stub(local=True) as stub,
            offboard_connect(stub.address, strategy="local", deadline_ms=800.0) as offboard,
        ):
            await offboard.complete(5.0)
            answers = [answer async for answer in offboard.stream(slowly([0] * 6, 0), 4)]
            assert [answer.label for answer in answers] == ["black"] * 6

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


def test_the_rest_of_the_bundle_delays_no_answer() -> None:
    async def main() -> None:
        async with Stub(local=True) as stub, offboard_connect(stub.address) as offboard:
            assert stub.fetched == [""]
            await offboard.infer(shade(1))
            await offboard.complete(5.0)
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


def test_parameter_texts() -> None:
    assert parameters(" r1=0.2, quality=60,") == {"r1": "0.2", "quality": "60"}
    assert parameters("") == {}
