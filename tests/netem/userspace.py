"""`bench.link` beside netem: plain TCP over both, on the same links and the same trace."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.link import HEADERS, SEGMENT
from bench.traces import load
from tests.netem.cases import STEADY
from tests.netem.conftest import HEADS, TABLES
from tests.netem.net import HOSTS
from tests.netem.world import World, spawned

PROBE = f"{HOSTS['server']}:7080"
LINK = "127.0.0.1:7081"
LINKS = ("4g", "5g", "wifi", "1mbps")
NEAR = 0.2
"""How far the two may be apart: they are nearer, but the machine may have other work."""
PROCESSES = 10.0
"""Milliseconds that two processes more may add to a round trip then."""
FOLLOWED = 0.25
"""How far from what the trace says."""
TRIES = 3
"""How often the two are compared before they count as different; the worst is told."""
TITLE = "bench.link beside netem: plain TCP, Mbps of a long transfer and ms of a short round trip"
HEADS[TITLE] = (
    f"{'link':<8}{'netem Mbps':>11}{'link Mbps':>11}{'apart':>8}"
    f"{'netem ms':>10}{'link ms':>9}{'apart':>8}{'try':>6}"
)
TRACE = "t_s,mbps\n0.0,8\n1.0,0\n2.0,2\n2.5,20\n3.5,8\n"
BYTES = 2_500_000
SECONDS = 0.25
"""How long one transfer takes: several short ones find a moment without other work."""


@pytest.fixture(scope="module")
def peer(here: World) -> Iterator[None]:
    """The other end of the probe."""
    command = [sys.executable, "-m", "tests.netem.probe", "serve", PROBE]
    with spawned(here.net.command("server", command), here.log, "listening"):
        yield


@contextlib.contextmanager
def link(here: World, *options: str) -> Iterator[None]:
    """`python -m bench.link` at the device's end, in front of an open link."""
    here.net.shape(None)
    command = [sys.executable, "-m", "bench.link", "--listen", LINK, "--to", PROBE, *options]
    with spawned(here.net.command("device", command), here.log, "carrying"):
        yield


def measured(here: World, at: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.netem.probe", "ask", at, str(size)]
    done = subprocess.run(
        here.net.command("device", command), capture_output=True, text=True, timeout=100, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", LINKS)
def test_the_same_link(name: str, here: World, peer: None) -> None:
    shape = STEADY[name]
    size = int(shape.rate * 1e6 / 8 * SECONDS)
    for attempt in range(TRIES):
        here.net.shape(shape)
        netem = measured(here, PROBE, size)
        with link(here, "--rate", str(shape.rate), "--rtt", str(shape.rtt)):
            ours = measured(here, LINK, size)
        faster = ours["mbps"] / netem["mbps"] - 1
        later = ours["rtt_ms"] - netem["rtt_ms"]
        TABLES[TITLE].append(
            f"{name:<8}{netem['mbps']:>11.2f}{ours['mbps']:>11.2f}{faster:>8.1%}"
            f"{netem['rtt_ms']:>10.2f}{ours['rtt_ms']:>9.2f}{later / netem['rtt_ms']:>8.1%}"
            f"{attempt + 1:>6}"
        )
        # Of a round trip of 2 ms, what the processes take is a part.
        near = abs(faster) <= NEAR and abs(later) <= max(PROCESSES, NEAR * netem["rtt_ms"])
        if near:
            return
    assert near, TABLES[TITLE][-TRIES:]


def test_the_same_trace(here: World, peer: None, tmp_path: Path) -> None:
    """An outage of a second and four steps: both need as long as the trace says."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    for attempt in range(TRIES):
        due, netem, ours = replayed(here, path, BYTES, 8.0)
        TABLES[TITLE].append(
            f"a trace with an outage, {BYTES} bytes: {due:.2f} s by the trace, "
            f"{netem:.2f} s by tc, {ours:.2f} s by bench.link (try {attempt + 1})"
        )
        near = max(abs(netem - due), abs(ours - due)) <= FOLLOWED * due
        if near:
            return
    assert near, TABLES[TITLE][-TRIES:]


def replayed(here: World, path: Path, size: int, seconds: float) -> tuple[float, float, float]:
    """Seconds that `size` bytes take: by the trace, over tc, over bench.link."""
    packets = math.ceil(size / SEGMENT)
    due = load(path).finish(0.0, (size + packets * HEADERS) * 8.0)
    here.net.queue(20.0, 1.0, ("device",))
    command = [sys.executable, "-m", "tests.netem.follow", str(path), str(seconds)]
    following = spawned(here.net.command("device", command), here.log, "following")
    with sender(here, PROBE, size) as send, following:
        netem = send()
    with (
        sender(here, LINK, size) as send,
        link(here, "--rtt", "20", "--trace", str(path)),
    ):
        ours = send()
    return due, netem, ours


@contextlib.contextmanager
def sender(here: World, at: str, size: int) -> Iterator[Callable[[], float]]:
    """A process ready to send `size` bytes; call it for the seconds until they are there."""
    command = [sys.executable, "-m", "tests.netem.probe", "send", at, str(size)]
    process = subprocess.Popen(
        here.net.command("device", command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def send() -> float:
        said, _ = process.communicate(b"\n", timeout=60)
        return float(json.loads(said)["seconds"])

    with process:
        try:
            yield send
        finally:
            process.kill()
