"""Rivals as child processes: start, talk to with a time limit, count their CPU, end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from queue import Empty, Queue
from typing import Any

import psutil

from common.errors import OffboardError


class Child:
    """One `bench.rivals.harness` process that speaks in lines.

    It runs before everything else on this machine, where that is permitted.
    """

    def __init__(self, *args: str) -> None:
        self.name = " ".join(args)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.rivals.harness", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(self._process.pid, os.SCHED_RR, os.sched_param(1))
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def read(self, seconds: float) -> str:
        """The next line. Raises OffboardError after `seconds` without one."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self._lines.get(timeout=0.5)
            except Empty:
                gone = self._process.poll() is not None
                if gone or time.monotonic() > end:
                    how = "died" if gone else f"said nothing for {seconds:.0f} s"
                    raise OffboardError(f"{self.name} {how}") from None

    def tell(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise OffboardError(f"{self.name}: {error}") from None

    def cpu(self) -> float:
        """CPU seconds of the process and all its children so far, to the nanosecond."""
        total = 0.0
        for pid in (self._process.pid, *(c.pid for c in self._family())):
            with contextlib.suppress(OSError):
                # Linux: the clock of another process; psutil's figures come in ticks of 10 ms.
                total += time.clock_gettime((~pid << 3) | 2)
        return total

    def _family(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.Error:
            return []

    def end(self) -> None:
        """Kill the process and all its children."""
        family = self._family()
        self._process.kill()
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._process.wait(10)


class Rival:
    """A server and its client, running."""

    def __init__(self, name: str, patience: float = 300.0) -> None:
        self.name = name
        self._server = Child(name, "serve")
        self._drive: Child | None = None
        try:
            port = self._server.read(patience).strip()
            self._drive = Child(name, "drive", port)
            self.burst(1000, 1, 0.05, patience)  # LitServe says its port before it listens
        except OffboardError:
            self.end()
            raise

    def burst(
        self, size: int, concurrency: int, seconds: float, patience: float = 60.0
    ) -> dict[str, Any]:
        """Load the server for `seconds`: a Sample as a dict, `cpu` of both sides in seconds."""
        assert self._drive is not None
        before = self._server.cpu()
        self._drive.tell(f"{size} {concurrency} {seconds}")
        sample: dict[str, Any] = json.loads(self._drive.read(seconds + patience))
        sample["cpu"] += self._server.cpu() - before
        time.sleep(seconds)  # what else runs here has its turn, outside of what is measured
        return sample

    def end(self) -> None:
        """End both processes."""
        self._server.end()
        if self._drive is not None:
            self._drive.end()
