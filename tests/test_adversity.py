"""Two real processes and a link that misbehaves: no frame lost, mislabelled, or late unmarked.

The device reads JPEGs from standard input, so the test sets the pace and knows which frames were
under way when the link broke.
"""

import asyncio
import io
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from bench import pair
from profiles.train import signs
from tests.proxy import Proxy

pytestmark = pytest.mark.usefixtures("own_cache")
FRAMES = 5
"""Sent before, during and after the trouble, each."""
DEADLINE_MS = 1500
PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""


class Server:
    """A server process that can be killed and started again on its port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "--profile", "signs"),
            *("--listen", f"127.0.0.1:{self.port}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b"ready on" not in (line := await self._process.stdout.readline()):
                assert line, "the server ended before it was ready"

    async def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


class Feed:
    """A device process, its frames one by one, and every answer it prints."""

    def __init__(self, process: asyncio.subprocess.Process, pictures: list[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._in, self._out = process, process.stdin, process.stdout
        self._pictures = pictures
        self.sent = 0
        self.answers: list[pair.Row] = []

    async def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._in.write(self._pictures[self.sent % len(self._pictures)])
            self.sent += 1
        await self._in.drain()

    async def answered(self, count: int) -> None:
        """Wait until `count` frames have their answer."""
        async with asyncio.timeout(PATIENCE):
            while len(self.answers) < count:
                line = await self._out.readline()
                assert line, f"the device ended after {len(self.answers)} answers"
                self.answers.append(json.loads(line))

    async def until_served(self) -> None:
        """Send single frames until the server answers one."""
        async with asyncio.timeout(PATIENCE):
            while True:
                await self.send()
                await self.answered(self.sent)
                if self.answers[-1]["source"] == "edge":
                    return
                await asyncio.sleep(0.1)

    async def end(self) -> int:
        """Close the stream; the exit status. Nothing may be printed beyond the answers."""
        self._in.close()
        assert await asyncio.wait_for(self._out.read(), PATIENCE) == b""
        return await asyncio.wait_for(self._process.wait(), PATIENCE)


@asynccontextmanager
async def device(port: int, pictures: list[bytes]) -> AsyncIterator[Feed]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "device", "--server", f"127.0.0.1:{port}", "--source", "-"),
        *("--strategy", "amot", "--json", "--in-flight", "3"),
        *("--set", "threshold=1.0,slo_objective=fixed"),  # a frame's answer is its own
        *("--deadline", str(DEADLINE_MS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Feed(process, pictures)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Signs of many classes, as a camera would send them."""
    made = []
    for seed in range(signs.EVALUATION.start, signs.EVALUATION.start + 3 * FRAMES):
        buffer = io.BytesIO()
        Image.fromarray(signs.render(seed)[0]).save(buffer, "JPEG", quality=92)
        made.append(buffer.getvalue())
    return made


Trouble = Callable[[Proxy, Server], Awaitable[None]]


async def stall(proxy: Proxy, server: Server) -> None:
    proxy.stall()


async def cut(proxy: Proxy, server: Server) -> None:
    proxy.cut()


async def cut_in_a_packet(proxy: Proxy, server: Server) -> None:
    proxy.cut_after(1500)


async def half_close(proxy: Proxy, server: Server) -> None:
    proxy.half_close()


async def nobody_listens(proxy: Proxy, server: Server) -> None:
    await proxy.stop()


async def server_dies(proxy: Proxy, server: Server) -> None:
    await server.kill()


async def mend(proxy: Proxy, server: Server, trouble: Trouble) -> None:
    if trouble is stall:
        proxy.resume()
    elif trouble is nobody_listens:
        await proxy.start()
    elif trouble is server_dies:
        await server.start()


TROUBLES = [stall, cut, cut_in_a_packet, half_close, nobody_listens, server_dies]


async def run(pictures: list[bytes], troubles: list[Trouble]) -> tuple[list[pair.Row], list[int]]:
    """The answers of one long stream through all `troubles`, and the exit status at its end."""
    server = Server()
    await server.start()
    try:
        async with Proxy.to(server.port) as proxy, device(proxy.port, pictures) as feed:
            await feed.until_served()
            # The bundle is complete once the local model is there: the first trouble waits for it.
            await asyncio.sleep(1.0)
            for trouble in troubles:
                await feed.send(FRAMES)
                await trouble(proxy, server)
                await feed.send(FRAMES)
                await feed.answered(feed.sent)
                await mend(proxy, server, trouble)
                await feed.until_served()
            served = feed.sent
            await feed.send(FRAMES)
            await feed.answered(feed.sent)
            assert {answer["source"] for answer in feed.answers[served:]} == {"edge"}
            return feed.answers, [await feed.end()]
    finally:
        await server.kill()


def test_no_frame_is_lost_or_mislabelled_whatever_the_link_does(pictures: list[bytes]) -> None:
    answers, status = asyncio.run(run(pictures, TROUBLES))
    assert status == [0]
    assert [answer["frame"] for answer in answers] == [
        answers[0]["frame"] if i == 0 else str(int(answers[0]["frame"]) + i)
        for i in range(len(answers))
    ]
    calm = asyncio.run(undisturbed(pictures, len(answers)))
    for answer, reference in zip(answers, calm, strict=True):
        assert answer["error"] is None
        if answer["source"] == "edge" and answer["degraded"] is None:
            assert answer["rounds"] == 2
            assert answer["label"] == reference["label"], answer
        else:
            assert answer["degraded"], answer
        assert answer["deadline_met"] == (answer["latency_ms"] <= DEADLINE_MS)
    assert any(answer["source"] == "device" for answer in answers)
    assert len({answer["label"] for answer in answers}) > 3


async def undisturbed(pictures: list[bytes], count: int) -> list[pair.Row]:
    """What the same stream is answered on a good link."""
    server = Server()
    await server.start()
    try:
        async with device(server.port, pictures) as feed:
            for _ in range(count):
                await feed.send()
                await feed.answered(feed.sent)
            assert await feed.end() == 0
            return feed.answers
    finally:
        await server.kill()
