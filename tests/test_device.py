"""The device program: what it prints and means, against a stand-in server over real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from device.cli import parameters
from device.output import Printer, Summary, line, record
from device.pipeline import failed
from device.strategy import Answer
from tests.device_run import ROOT, ended, program, start
from tests.device_stub import CLASSES, Stub, write

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
    "link_mbps": 7.6,
    "link_rtt_ms": None,
    "chosen": None,
    "predicted_ms": None,
    "degraded": None,
    "error": None,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
        link_mbps=7.6,
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
    status, out, err = program(Stub(), "--source", "-", "--json", data=b"")
    assert (status, out) == (2, "")
    assert "gave no picture" in err


def test_text_for_a_profile_of_pictures_is_an_error_a_line() -> None:
    status, out, _ = program(Stub(), "--source", "-", "--json", data=b"one\ntwo")
    answers = [json.loads(text) for text in out.splitlines()]
    assert status == 1
    assert [answer["frame"] for answer in answers] == ["0", "1"]
    assert all(answer["error"].startswith("unreadable: ") for answer in answers)


def test_another_profile_than_the_one_asked_for_is_refused() -> None:
    status, out, err = program(Stub(), "--source", "-", "--profile", "sst2", data=b"fine\n")
    assert (status, out) == (2, "")
    assert "the server serves the profile 'shades', not 'sst2'" in err


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
    assert "does not offer 'local': choose one of amot" in err


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


def test_parameter_texts() -> None:
    assert parameters(" r1=0.2, quality=60,") == {"r1": "0.2", "quality": "60"}
    assert parameters("") == {}
