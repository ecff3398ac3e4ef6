"""What both programs tell systemd in a whole life: alive, ready, stopping; and when not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from server.executor import Executor, Job
from server.pulse import Pulse
from tests.profiles import tiny
from tests.serving import WAIT, Scripted, query

ROOT = Path(__file__).resolve().parent.parent
BEAT = 0.05
START = 60.0
"""Seconds that a program may take on a busy machine."""


class Manager:
    """Listens where NOTIFY_SOCKET says, as systemd does."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(START)
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("OFFBOARD_")},
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(4e6 * BEAT)),
        }

    def until(self, state: str) -> list[str]:
        """All that is said up to and including `state`."""
        said = [self.socket.recv(4096).decode()]
        while said[-1] != state:
            said.append(self.socket.recv(4096).decode())
        return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with closing(manager.socket):
        yield manager


@contextmanager
def running(manager: Manager, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=manager.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_says_ready_can_be_reached(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--profile", str(tiny(tmp_path)), "--listen", f"127.0.0.1:{port}")
    with running(manager, "server", *flags) as process:
        manager.until("READY=1")
        socket.create_connection(("127.0.0.1", port), 2).close()
        assert manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert process.wait(START) == 0


def test_a_device_without_a_server_gets_ready_and_lives(manager: Manager, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    flags = ("--server", "127.0.0.1:9", "--source", "-", "--patience", "0.2", "--cache", cache)
    with running(manager, "device", *flags) as process:
        assert "STOPPING=1" not in manager.until("READY=1")
        manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert process.wait(START) == 0


class Worker:
    pending = 0
    turns = 0


def test_the_pulse_stops_only_when_queries_wait_and_nothing_moves() -> None:
    worker = Worker()
    pulse = Pulse(worker)
    assert pulse()
    assert pulse(), "nothing to do is no trouble"
    worker.pending = 3
    assert not pulse()
    assert not pulse()
    worker.turns += 1
    assert pulse()
    assert not pulse()
    worker.pending = 0
    assert pulse()


def test_a_forward_that_does_not_end_stops_the_pulse() -> None:
    hung = Scripted(hold=threading.Event())

    async def main() -> None:
        executor = Executor({"scripted": hung})
        await executor.start()
        done = asyncio.Event()
        pulse = Pulse(executor)
        executor.submit(Job(query(), lambda job: done.set(), arrived=time.monotonic()))
        assert await asyncio.to_thread(hung.entered.wait, WAIT)
        pulse()
        assert not pulse()
        assert hung.hold is not None
        hung.hold.set()
        async with asyncio.timeout(WAIT):
            await done.wait()
        assert pulse()
        await executor.stop()

    asyncio.run(main())
