"""The two real processes, one in each namespace: a server that stays, devices that come and go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import served
from tests.netem.net import HOSTS, Net

PORT = 7070
"""Of the first profile's server; the next ones' follow."""
BOOT = 300.0
"""Seconds the server may take to get ready."""
RUN = 120.0
"""Seconds one device may take."""
LEAST, MOST = 3, 6
"""Frames to warm up with."""
SETTLED = 500.0
"""Milliseconds within which an answer shows that a device has warmed up."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer's JSON object and when it was printed, on `time.monotonic`."""

    at: float
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Played:
    """What was seen while a link changed: each strategy's answers, how many frames each was `fed`
    and how many of these to `warm` up, when each line of the script had been carried out, and how
    many seconds late this machine was, at worst, with sending a frame."""

    seen: dict[str, list[Seen]]
    fed: int
    warm: int
    done: list[float]
    lag: float


@contextlib.contextmanager
def spawned(
    command: Sequence[str], log: Path, ready: str | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped afterwards. `ready`: what it prints when it can be used."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if ready is not None:
            _await(process, ready, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _await(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    killer = threading.Timer(BOOT, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if ready in line.decode():
                break
        else:
            raise RuntimeError(f"{process.args!r} did not get ready:\n{log.read_text()[-2000:]}")
    finally:
        killer.cancel()
    # What it prints from now on must not fill the pipe.
    threading.Thread(target=_drain, args=(process,), daemon=True).start()


def _drain(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        assert process.stdout is not None
        for _ in process.stdout:
            pass


@contextlib.contextmanager
def server(net: Net, profile: str, port: int, log: Path) -> Iterator[str]:
    """A server, ready. Its address."""
    address = f"{HOSTS['server']}:{port}"
    command = [sys.executable, "-m", "server", "--profile", profile, "--listen", address]
    with spawned(net.command("server", [*command, "--insecure"]), log, "ready on"):
        yield address


@dataclass(slots=True)
class World:
    """Devices at one end of `net`. `frames`: the pictures they send, in order.

    `servers`: where at the other end each strategy is served.
    """

    net: Net
    frames: list[Path]
    cache: Path
    log: Path
    servers: dict[str, str] = field(default_factory=dict)

    def device(self, strategy: str, source: str, *options: str, server: str = "") -> list[str]:
        """The command of a device process, of a `server` if not its own."""
        words = [sys.executable, "-m", "device", "--server", server or self.servers[strategy]]
        words += ["--source", source, "--strategy", strategy, "--json"]
        return self.net.command("device", [*words, *served.options(strategy), *options])

    def stored(
        self, strategy: str, count: int, *options: str, deadline_ms: float, server: str = ""
    ) -> list[dict[str, Any]]:
        """The answers to the first `count` frames, one in flight."""
        with self._folder(count) as folder, self.log.open("a") as errors:
            done = subprocess.run(
                self.device(strategy, str(folder), "--in-flight", "1", "--deadline",
                            str(deadline_ms), *options, server=server),
                stdout=subprocess.PIPE, stderr=errors, text=True, timeout=RUN, check=False,
                env=self._environment(),
            )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    def live(
        self,
        strategies: Sequence[str],
        times: Sequence[float],
        deadline_ms: float,
        script: Sequence[tuple[float, Callable[[], None]]],
    ) -> Played:
        """All strategies at once, a frame at each of `times` (seconds), while `script` runs.

        Before, some to warm up. `script`: what is done to the link, and when.
        """
        runs = [Run(name) for name in strategies]
        done: list[float] = []
        lag = 0.0
        with contextlib.ExitStack() as stack:
            for run in runs:
                words = self.device(run.strategy, "-", "--deadline", str(deadline_ms))
                run.process = stack.enter_context(spawned(words, self.log, **self._environment()))
                run.begin()
            # The interpreters have started, the bundle is complete and the local model has been
            # tried before anything happens.
            for warm in range(1, MOST + 1):
                for run in runs:
                    run.feed(self.frames[warm - 1])
                    run.wait_for(warm)
                if warm >= LEAST and all(r.seen[-1].row["latency_ms"] <= SETTLED for r in runs):
                    break
                time.sleep(0.5)
            began = time.monotonic()
            worker = threading.Thread(target=_play, args=(script, began, done), daemon=True)
            worker.start()
            for frame, at in zip(self.frames[warm:], times, strict=False):
                time.sleep(max(0.0, began + at - time.monotonic()))
                lag = max(lag, time.monotonic() - began - at)
                for run in runs:
                    run.feed(frame)
            worker.join(30)
            for run in runs:
                run.end()
        seen = {run.strategy: run.seen for run in runs}
        return Played(seen, warm + len(times), warm, done, lag)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "OFFBOARD_CACHE": str(self.cache)}

    @contextlib.contextmanager
    def _folder(self, count: int) -> Iterator[Path]:
        folder = self.cache.parent / f"first-{count}"
        if not folder.exists():
            folder.mkdir()
            for frame in self.frames[:count]:
                (folder / frame.name).symlink_to(frame)
        yield folder


@dataclass(slots=True)
class Run:
    """One device fed on standard input."""

    strategy: str
    seen: list[Seen] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _reader: threading.Thread | None = None

    def begin(self) -> None:
        """Note each answer as it comes."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def feed(self, frame: Path) -> None:
        """Send one picture."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(frame.read_bytes())
        self.process.stdin.flush()

    def wait_for(self, count: int) -> None:
        """Wait until there are `count` answers."""
        end = time.monotonic() + 60.0
        while len(self.seen) < count:
            assert self.process is not None
            assert time.monotonic() < end, f"{self.strategy}: no answer to frame {count - 1}"
            assert self.process.poll() is None, f"{self.strategy}: the device has stopped"
            time.sleep(0.02)

    def end(self) -> None:
        """No more pictures; wait for the last answer."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self._reader is not None
        self.process.stdin.close()
        self._reader.join(RUN)
        self.process.wait(10)

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(Seen(time.monotonic(), json.loads(line)))


def _play(
    script: Sequence[tuple[float, Callable[[], None]]], began: float, done: list[float]
) -> None:
    for after, act in script:
        time.sleep(max(0.0, began + after - time.monotonic()))
        act()
        done.append(time.monotonic())
