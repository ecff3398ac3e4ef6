"""Device, edge and cloud as three real processes: every strategy, a cloud that goes and comes."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import pair
from common import profile as profiles
from common import registry
from server.serving import STRATEGIES
from tests.profiles import picture, tiny
from tests.proxy import Proxy
from tests.test_server import Process, started

pytestmark = pytest.mark.usefixtures("own_cache")
COUNT = 6
DEADLINE_MS = 1500
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""
SETTINGS: dict[str, dict[str, object]] = {
    "amot": {"threshold": 1.0},
    "dimec": {"route": "cloud"},
    "dimee": {"route": "cloud"},
}
"""What makes a strategy go all the way."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def pictures(directory: Path) -> list[bytes]:
    profile = profiles.load(directory)
    made = []
    for seed in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(picture(profile, seed))).save(buffer, "JPEG", quality=92)
        made.append(buffer.getvalue())
    return made


@pytest.fixture(scope="module")
def frames(pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames")
    for index, data in enumerate(pictures):
        (path / f"{index}.jpg").write_bytes(data)
    return path


@pytest.fixture(scope="module")
def cloud(directory: Path) -> Iterator[Process]:
    with started("--profile", str(directory), OFFBOARD_TOKEN="cloud's") as found:
        yield found


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "token"
    path.write_text("cloud's\n")
    return path


@pytest.fixture(scope="module")
def edge(directory: Path, cloud: Process, token: Path) -> Iterator[Process]:
    """One that holds nothing itself."""
    flags = ("--strategies", "none", "--cloud", f"127.0.0.1:{cloud.port}")
    with started("--profile", str(directory), *flags, "--cloud-token-file", str(token)) as found:
        reached(found)
        yield found


def get(process: Process, path: str) -> str:
    address = f"http://127.0.0.1:{process.metrics}{path}"
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read().decode()}"


def reached(edge: Process) -> None:
    """Wait until `edge` has its cloud."""
    end = time.monotonic() + PATIENCE
    while ": connected" not in get(edge, "/healthz"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_edge_that_holds_nothing_loads_no_model(edge: Process) -> None:
    assert "libtorch" not in Path(f"/proc/{edge.process.pid}/maps").read_text()


@pytest.mark.parametrize("strategy", registry.names(STRATEGIES))
def test_every_strategy_is_answered_by_the_cloud(
    strategy: str, edge: Process, directory: Path, frames: Path
) -> None:
    if strategy not in profiles.load(directory).manifest.strategies:
        pytest.skip("the tiny profile does not have it")
    settings = SETTINGS.get(strategy)
    answers = pair.stream(f"127.0.0.1:{edge.port}", frames, strategy, settings, in_flight=2)
    assert len(answers) == COUNT
    for answer in answers:
        assert answer["source"] == "cloud", answer
        assert (answer["error"], answer["degraded"]) == (None, None)
        assert answer["rounds"] == (2 if strategy in ("amot", "sdt") else 1)


def test_the_answers_are_the_clouds(
    edge: Process, cloud: Process, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = pair.stream(f"127.0.0.1:{edge.port}", frames, "amot", SETTINGS["amot"])
    monkeypatch.setenv("OFFBOARD_TOKEN", "cloud's")
    straight = pair.stream(f"127.0.0.1:{cloud.port}", frames, "amot", SETTINGS["amot"])
    for one, other in zip(through, straight, strict=True):
        assert (one["source"], other["source"]) == ("cloud", "edge")
        assert one["top"] == other["top"]
        assert one["bytes_up"] == other["bytes_up"]


def test_health_and_metrics_show_the_peer(edge: Process, cloud: Process, frames: Path) -> None:
    pair.stream(f"127.0.0.1:{edge.port}", frames, "jpeg")
    ok, peer, end = get(edge, "/healthz").split("\n")
    assert (ok, end) == ("ok", "")
    assert peer.startswith(f"cloud 127.0.0.1:{cloud.port}: connected, rtt ")
    shown = get(edge, "/metrics")
    assert "offboard_cloud_connected 1.0" in shown
    assert 'offboard_cloud_queries_total{outcome="answered",strategy="jpeg"}' in shown
    assert 'offboard_cloud_seconds_count{strategy="jpeg"}' in shown
    for name in ("rtt_seconds", "pending", "bytes_up_total", "bytes_down_total"):
        assert f"\noffboard_cloud_{name} " in shown
    assert get(cloud, "/healthz") == "ok\n"


def test_an_edge_that_holds_nothing_is_unwell_without_its_cloud(directory: Path) -> None:
    with started(
        "--profile", str(directory), "--strategies", "none", "--cloud", "127.0.0.1:9"
    ) as it:
        assert get(it, "/healthz").startswith(
            "503 nothing is served here without the cloud\ncloud "
        )
        assert "offboard_cloud_connected 0.0" in get(it, "/metrics")
        assert it.stop()[0] == 0


class Feed:
    """A device process, its frames one by one, and every answer it prints."""

    def __init__(self, process: asyncio.subprocess.Process, pictures: list[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out, self._pictures = process.stdin, process.stdout, pictures
        self.sent = 0
        self.answers: list[pair.Row] = []

    async def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._in.write(self._pictures[self.sent % len(self._pictures)])
            self.sent += 1
        await self._in.drain()

    async def answered(self) -> None:
        """Wait until every frame has its answer."""
        async with asyncio.timeout(PATIENCE):
            while len(self.answers) < self.sent:
                line = await self._out.readline()
                assert line, f"the device ended after {len(self.answers)} answers"
                self.answers.append(json.loads(line))

    async def until(self, source: str) -> None:
        """Send single frames until one is answered by `source`."""
        async with asyncio.timeout(PATIENCE):
            while not self.answers or self.answers[-1]["source"] != source:
                await self.send()
                await self.answered()


@asynccontextmanager
async def device(port: int, strategy: str, pictures: list[bytes]) -> AsyncIterator[Feed]:
    settings = ",".join(f"{key}={value}" for key, value in SETTINGS[strategy].items())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "device", "--server", f"127.0.0.1:{port}", "--source", "-"),
        *("--strategy", strategy, "--json", "--in-flight", "3", "--set", settings),
        *("--deadline", str(DEADLINE_MS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Feed(process, pictures)
    finally:
        process.kill()
        await process.wait()


Start = Callable[..., Process]


async def trouble(
    start: Start, directory: Path, pictures: list[bytes], strategy: str, held: str
) -> list[pair.Row]:
    """The answers of one stream while the cloud stalls, is cut off, dies, and starts again."""
    cloud = await asyncio.to_thread(start, "--profile", str(directory), "--strategies", strategy)
    async with Proxy.to(cloud.port) as proxy:
        edge = await asyncio.to_thread(
            start, "--profile", str(directory), "--strategies", held,
            "--cloud", f"127.0.0.1:{proxy.port}",
        )  # fmt: skip
        async with device(edge.port, strategy, pictures) as feed:
            await feed.until("cloud")
            proxy.stall()
            await feed.send(4)
            await feed.answered()
            proxy.resume()
            await feed.until("cloud")
            proxy.cut_after(500)
            await feed.send(4)
            await feed.answered()
            await feed.until("cloud")
            if held != "none":
                await feed.send(2)
                await asyncio.to_thread(cloud.process.kill)
                await feed.send(2)
                await feed.answered()
                cloud = await asyncio.to_thread(
                    start, "--profile", str(directory), "--strategies", strategy
                )
                proxy.target = cloud.port
                await feed.until("cloud")
            assert (await asyncio.to_thread(edge.stop))[0] == 0
            return feed.answers


@pytest.mark.parametrize(("strategy", "held"), [("dimec", "raw,dimec"), ("amot", "none")])
def test_a_cloud_that_goes_and_comes(
    strategy: str, held: str, directory: Path, pictures: list[bytes]
) -> None:
    with ExitStack() as processes:

        def start(*flags: str) -> Process:
            return processes.enter_context(started(*flags))

        answers = asyncio.run(trouble(start, directory, pictures, strategy, held))
    degraded = [answer for answer in answers if answer["degraded"]]
    assert degraded
    for answer in answers:
        assert answer["error"] is None, answer
        assert answer["deadline_met"] == (answer["latency_ms"] <= DEADLINE_MS)
        assert (answer["source"] == "cloud") or answer["degraded"], answer
    if held != "none":  # it is the edge that answers, in time, and says why
        assert {answer["source"] for answer in degraded} == {"edge"}
        assert all(answer["deadline_met"] for answer in degraded)
        assert all("cloud 127.0.0.1:" in answer["degraded"] for answer in degraded)
