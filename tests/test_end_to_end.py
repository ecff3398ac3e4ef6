"""Two real processes, the real profile `signs`, every strategy it offers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import pair
from common import profile as profiles
from profiles.train import signs

pytestmark = pytest.mark.usefixtures("own_cache")
COUNT = 24
FIELDS = {
    *("frame", "label", "prob", "top", "source", "strategy", "rounds", "bytes_up", "bytes_down"),
    *("latency_ms", "device_ms", "server_ms", "deadline_met", "degraded", "error"),
}
MANIFEST = profiles.load("signs").manifest


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("signs")
    first = signs.EVALUATION.start
    signs.write(directory, range(first, first + COUNT))
    return directory


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pair.server("signs") as found:
        yield found


def right(answers: list[pair.Row], frames: Path) -> float:
    truths = [pair.truth(path) for path in pair.pictures(frames)]
    return float(pair.summary(answers, truths)["accuracy"])


@pytest.mark.parametrize("strategy", sorted(MANIFEST.strategies))
def test_every_frame_gets_its_answer(strategy: str, address: str, frames: Path) -> None:
    answers = pair.stream(address, frames, strategy, in_flight=4)
    names = [path.name for path in pair.pictures(frames)]
    assert [Path(answer["frame"]).name for answer in answers] == names
    for answer in answers:
        assert answer.keys() >= FIELDS
        assert answer["error"] is None
        assert answer["degraded"] is None
        assert answer["strategy"] == strategy
        assert answer["label"] == answer["top"][0][0]
        assert {label for label, _ in answer["top"]} <= set(MANIFEST.classes)
        assert answer["latency_ms"] > 0
        assert (answer["source"] == "device") == (strategy == "local")
        assert (answer["bytes_up"] == 0) == (strategy == "local")
        assert answer["rounds"] in ({0} if strategy == "local" else {1, 2})


def test_the_full_frame_is_right_and_a_sample_costs_less(address: str, frames: Path) -> None:
    raw = pair.stream(address, frames, "raw", in_flight=4)
    amot = pair.stream(address, frames, "amot", in_flight=4)
    assert right(raw, frames) >= 0.8
    assert right(amot, frames) >= 0.4
    assert sum(a["bytes_up"] for a in amot) < sum(r["bytes_up"] for r in raw) / 4
    assert {answer["rounds"] for answer in amot} == {1, 2}


def test_settings_reach_the_server(address: str, frames: Path) -> None:
    one = pair.stream(address, frames, "amot", {"threshold": 0}, in_flight=4)
    two = pair.stream(address, frames, "amot", {"threshold": 1.0, "r2": 0.5}, in_flight=4)
    assert {answer["rounds"] for answer in one} == {1}
    assert {answer["rounds"] for answer in two} == {2}
    assert sum(a["bytes_up"] for a in two) > 2 * sum(a["bytes_up"] for a in one)


def test_answers_do_not_depend_on_what_else_is_in_flight(address: str, frames: Path) -> None:
    # A weighted second round shares one allowance among all frames, so they depend on each other.
    fixed = {"r2": 0.2, "slo_objective": "fixed"}
    alone = pair.stream(address, frames, "amot", fixed, in_flight=1)
    crowded = pair.stream(address, frames, "amot", fixed, in_flight=8)
    assert pair.agreement(alone, crowded) == 1.0
    assert [a["bytes_up"] for a in alone] == [a["bytes_up"] for a in crowded]


def test_an_unreadable_file_is_an_error_on_its_own_frame(
    address: str, frames: Path, tmp_path: Path
) -> None:
    for path in pair.pictures(frames)[:3]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "0-broken.jpg").write_bytes(b"\xff\xd8 this is no picture")
    command = [sys.executable, "-m", "device", "--server", address, "--source", str(tmp_path)]
    done = subprocess.run(
        [*command, "--strategy", "jpeg", "--json"], capture_output=True, text=True, timeout=60
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [answer["error"] is None for answer in answers] == [False, True, True, True]


def test_without_a_server_the_local_model_answers_and_says_so(frames: Path) -> None:
    with pair.server("signs") as address:
        pair.stream(address, frames, "jpeg")
    answers = pair.stream(address, frames, "jpeg", deadline_ms=1000)
    assert len(answers) == COUNT
    for answer in answers:
        assert answer["source"] == "device"
        assert answer["label"] in MANIFEST.classes
        assert answer["degraded"]
        assert answer["error"] is None


def test_without_server_and_bundle_every_frame_is_unavailable(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "device", "--server", "127.0.0.1:9", "--json"]
    command += ["--source", str(frames), "--strategy", "jpeg", "--deadline", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert len(answers) == COUNT
    for answer in answers:
        assert answer["label"] is None
        assert "unavailable" in answer["error"]


def test_sigterm_drains_the_server() -> None:
    command = [sys.executable, "-m", "server", "--profile", "signs", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            if "ready on" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = output.read()
    assert process.wait(15) == 0, rest


def test_the_running_files_are_programs_too(frames: Path, address: str) -> None:
    """`python device/device.py` and `python server/server.py` work from any directory."""
    root = Path(pair.__file__).parent.parent
    one = pair.pictures(frames)[0]
    command = [sys.executable, str(root / "device/device.py"), "--server", address]
    done = subprocess.run(
        [*command, "--source", str(one), "--strategy", "raw"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert one.name in done.stdout
    helped = subprocess.run(
        [sys.executable, str(root / "server/server.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert helped.returncode == 0, helped.stderr
    assert "--profile" in helped.stdout
