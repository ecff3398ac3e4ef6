"""The server as a process: ready, served, drained, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.client import Client, Reply
from common.codec import decode, encode
from common.errors import Refused
from common.messages import Query
from common.profile import Manifest, Profile, load
from server.executor import Executor
from server.metrics import Metrics
from server.server import BROKEN, STUCK, trouble
from server.service import Offer, Service, SessionLimits
from tests.profiles import picture, tiny
from tests.serving import WAIT

ROOT = Path(__file__).resolve().parent.parent
START = 60.0
"""Seconds a server may take to get ready on a busy machine (torch alone takes several)."""


@dataclass
class Process:
    """A server that is ready."""

    process: subprocess.Popen[str]
    port: int
    metrics: int

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status and what it logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=START)
        return self.process.returncode, log


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "server" / "server.py"), *flags]


def environment(**extra: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("OFFBOARD_")} | extra


@contextmanager
def started(*flags: str, **extra: str) -> Iterator[Process]:
    """Run a server from another directory, as a file."""
    process = subprocess.Popen(
        command("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(**extra),
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        found = re.fullmatch(r"offboard-server ready on 127\.0\.0\.1:(\d+)\n", ready)
        if not found:
            process.kill()
            pytest.fail(process.communicate(timeout=START)[1])
        metrics = ""
        while "metrics on=" not in metrics:
            metrics = process.stderr.readline()
        yield Process(process, int(found[1]), int(metrics.rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate(timeout=START)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def profile(directory: Path) -> Profile:
    return load(directory)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Process]:
    with started("--profile", str(directory), OFFBOARD_TOKEN="secret") as found:
        yield found


def frame(profile: Profile) -> Query:
    return Query("raw", "whole", tensors={"frame": encode(picture(profile), "lz4")})


def test_a_device_gets_its_bundle_and_an_answer(server: Process, profile: Profile) -> None:
    async def main() -> None:
        async with Client.connect("127.0.0.1", server.port, token="secret") as client:
            manifest = Manifest.from_bytes(await client.fetch("", deadline=WAIT))
            assert client.welcome is not None
            assert manifest.digest == client.welcome.digest == profile.manifest.digest
            for file in manifest.files:
                assert await client.fetch(file.path, deadline=WAIT) == profile.read(file.path)
            reply = await client.ask(frame(profile), deadline=WAIT)
            assert decode(reply.result.tensors["probabilities"]).shape == (4,)

    asyncio.run(main())


def test_a_wrong_token_is_refused(server: Process) -> None:
    async def main() -> None:
        with pytest.raises(Refused, match="wrong token"):
            async with Client.connect("127.0.0.1", server.port, token="guess"):
                pass

    asyncio.run(main())


def test_metrics_and_health_have_a_port_of_their_own(server: Process, profile: Profile) -> None:
    async def main() -> None:
        async with Client.connect("127.0.0.1", server.port, token="secret") as client:
            await client.ask(frame(profile), deadline=WAIT)

    asyncio.run(main())
    base = f"http://127.0.0.1:{server.metrics}"
    with urllib.request.urlopen(f"{base}/healthz", timeout=WAIT) as reply:
        assert reply.read() == b"ok\n"
    with urllib.request.urlopen(f"{base}/metrics", timeout=WAIT) as reply:
        assert b'offboard_results_total{step="whole",strategy="raw"}' in reply.read()


def test_a_second_server_on_the_port_is_told(server: Process, directory: Path) -> None:
    done = subprocess.run(
        command("--profile", str(directory), "--listen", f"127.0.0.1:{server.port}"),
        capture_output=True,
        text=True,
        timeout=START,
        env=environment(),
    )
    assert done.returncode == 2
    assert "already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(directory: Path, profile: Profile, number: int) -> None:
    """Whatever was asked before is answered: by a result, or by a refusal that can be retried."""

    async def main(process: Process) -> None:
        async with Client.connect("127.0.0.1", process.port) as client:
            await client.ask(frame(profile), deadline=WAIT)
            asks = [
                asyncio.create_task(client.ask(frame(profile), deadline=WAIT)) for _ in range(64)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0.002)
            stopped = asyncio.create_task(asyncio.to_thread(process.stop, number))
            answers = await asyncio.gather(*asks, return_exceptions=True)
            status, log = await stopped
        assert status == 0, log
        assert "draining" in log
        assert "Traceback" not in log
        for answer in answers[: SessionLimits().credits]:  # the others were never sent
            assert isinstance(answer, Reply) or (
                isinstance(answer, Refused) and answer.retryable
            ), answer

    with started("--profile", str(directory)) as process:
        asyncio.run(main(process))


@pytest.mark.parametrize(
    ("flags", "extra", "complaint"),
    [
        ((), {}, "profile is not set: give --profile"),
        (("--profile", "none-such"), {}, "no profile 'none-such'"),
        (("--profile", "PROFILE", "--listen", "0.0.0.0:0"), {}, "other machines could use"),
        (("--profile", "PROFILE", "--listen", "7070"), {}, "no HOST:PORT"),
        (("--profile", "PROFILE", "--max-batch", "-1"), {}, "max_batch is -1"),
        (("--profile", "PROFILE", "--token-file", "/none"), {}, "--token-file /none"),
        (("--profile", "PROFILE"), {"OFFBOARD_CREDITS": "many"}, "OFFBOARD_CREDITS"),
        (("--profile", "PROFILE", "--device", "abacus"), {}, "give cpu, cuda or cuda:N"),
        (("--profile", "PROFILE", "--device", "cuda:99"), {}, "torch sees"),
        (("--profile", "PROFILE", "--strategies", "raw,magic"), {}, "'magic'"),
        (("--profile", "PROFILE", "--strategies", "none"), {}, "none serves nothing: give --cloud"),
        (("--profile", "PROFILE", "--cloud", "box"), {}, "'box' is no HOST:PORT"),
        (("--profile", "PROFILE", "--cloud-token-file", "/no"), {}, "--cloud-token-file /no"),
        (("--profile", "P", "--cloud", "c:1", "--listen", "c:1"), {}, "is this server itself"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    directory: Path, flags: tuple[str, ...], extra: Mapping[str, str], complaint: str
) -> None:
    given = [str(directory) if flag == "PROFILE" else flag for flag in flags]
    began = time.monotonic()
    done = subprocess.run(
        command(*given), capture_output=True, text=True, timeout=START, env=environment(**extra)
    )
    assert done.returncode == 2
    assert done.stderr.startswith("offboard-server: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < START


def test_the_program_s_own_folder_is_not_on_the_import_path() -> None:
    code = (
        "import runpy, sys; sys.argv = ['server.py', '--help']\n"
        f"sys.path[0] = {str(ROOT / 'server')!r}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'server' / 'server.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import server\n"
        "print(sys.path[0], server.__file__, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=START, cwd="/"
    )
    *_, last = done.stdout.splitlines()
    assert last == f"{ROOT} {ROOT / 'server' / '__init__.py'} False", done.stderr


def test_health_tells_draining_stuck_and_broken() -> None:
    executor = Executor({})
    service = Service(Offer("p", "d", ()), executor, Metrics())
    assert trouble(service, 100.0) is None
    executor.running_since = 100.0
    assert trouble(service, 100.0 + STUCK) is None
    assert "running for" in str(trouble(service, 101.0 + STUCK))
    executor.running_since = None
    executor.failures_in_a_row = BROKEN
    assert "failed in a row" in str(trouble(service, 100.0))
    service.draining = True
    assert trouble(service, 100.0) == "draining"
