"""Answers on paper: one JSON object or one line per frame, a progress bar, a summary."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from device.strategy import Answer

BAR = 24
REDRAW = 0.1
"""Seconds between two drawings of the progress bar."""


def record(answer: Answer) -> dict[str, Any]:
    """The stable JSON object of an answer (docs/device.md); milliseconds, bytes."""
    return {
        "frame": answer.frame,
        "label": answer.label,
        "prob": round(answer.prob, 6),
        "top": [[label, round(prob, 6)] for label, prob in answer.top],
        "source": answer.source,
        "strategy": answer.strategy,
        "rounds": answer.rounds,
        "bytes_up": answer.bytes_up,
        "bytes_down": answer.bytes_down,
        "latency_ms": round(answer.latency_ms, 3),
        "device_ms": round(answer.device_ms, 3),
        "server_ms": round(answer.server_ms, 3),
        "deadline_met": answer.deadline_met,
        "link_mbps": None if answer.link_mbps is None else round(answer.link_mbps, 3),
        "link_rtt_ms": None if answer.link_rtt_ms is None else round(answer.link_rtt_ms, 3),
        "chosen": None if answer.chosen is None else dict(answer.chosen),
        "predicted_ms": None if answer.predicted_ms is None else round(answer.predicted_ms, 3),
        "degraded": answer.degraded,
        "error": answer.error,
    }


def line(answer: Answer) -> str:
    """One line for people."""
    if answer.label is None:
        return f"{answer.frame}  no answer: {answer.error}"
    rounds = f"{answer.rounds} round{'' if answer.rounds == 1 else 's'}"
    parts = [
        f"{answer.frame}  {answer.label} {answer.prob:.1%}",
        f"{answer.source}/{answer.strategy}, {rounds}",
        f"{answer.bytes_up / 1000:.1f} kB up",
        f"{answer.latency_ms:.0f} ms" + ("" if answer.deadline_met else " (late)"),
    ]
    if answer.degraded:
        parts.append(f"degraded: {answer.degraded}")
    return "  ".join(parts)


@dataclass(slots=True)
class Summary:
    """What a whole stream came to."""

    frames: int = 0
    unanswered: int = 0
    degraded: int = 0
    late: int = 0
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    device_ms: float = 0.0
    latencies: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def add(self, answer: Answer) -> None:
        """One more answer."""
        self.frames += 1
        self.bytes_up += answer.bytes_up
        self.bytes_down += answer.bytes_down
        self.device_ms += answer.device_ms
        if answer.label is None:
            self.unanswered += 1
            return
        self.rounds += answer.rounds
        self.degraded += answer.degraded is not None
        self.late += not answer.deadline_met
        self.sources[f"{answer.source}/{answer.strategy}"] += 1
        # Bounded: a camera may run for a year.
        if len(self.latencies) < 100_000:
            self.latencies.append(answer.latency_ms)

    def table(self, dropped: int = 0) -> str:
        """The summary, a name and a value to a line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        answered = max(self.frames - self.unanswered, 1)
        rows = [
            ("frames", f"{self.frames} in {seconds:.1f} s, {self.frames / seconds:.1f} a second"),
            ("answered by", ", ".join(f"{k} {n}" for k, n in self.sources.most_common()) or "none"),
            ("rounds a frame", f"{self.rounds / answered:.2f}"),
            ("bytes up a frame", f"{self.bytes_up / answered:.0f}"),
            ("bytes down a frame", f"{self.bytes_down / answered:.0f}"),
            ("device CPU a frame", f"{self.device_ms / answered:.2f} ms"),
        ]
        if self.latencies:
            p50, p95 = np.percentile(self.latencies, [50, 95])
            rows.append(("latency p50, p95", f"{p50:.1f} ms, {p95:.1f} ms"))
        for name, count in (
            ("degraded", self.degraded),
            ("late", self.late),
            ("without an answer", self.unanswered),
            ("dropped unseen", dropped),
        ):
            if count:
                rows.append((name, str(count)))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


class Printer:
    """Writes answers to `out`, and on a terminal a progress bar to `bar` below them."""

    def __init__(
        self,
        *,
        as_json: bool,
        total: int | None,
        out: TextIO | None = None,
        bar: TextIO | None = None,
    ) -> None:
        self._as_json = as_json
        self._total = total
        self._out = out or sys.stdout
        self._bar = bar or sys.stderr
        self._drawn = 0.0
        self._shown = False
        self._draws = total is not None and not as_json and self._bar.isatty()

    def answer(self, answer: Answer, done: int) -> None:
        """Print one answer, the `done`-th."""
        self.clear()
        text = json.dumps(record(answer), ensure_ascii=False) if self._as_json else line(answer)
        print(text, file=self._out, flush=True)
        now = time.monotonic()
        if self._draws and self._total and now - self._drawn >= REDRAW:
            self._drawn = now
            full = BAR * done // self._total
            bar = "#" * full + "." * (BAR - full)
            print(f"\r[{bar}] {done}/{self._total}", end="", file=self._bar, flush=True)
            self._shown = True

    def summary(self, summary: Summary, dropped: int) -> None:
        """The table at the end; not among JSON lines."""
        self.clear()
        if not self._as_json:
            print("\n" + summary.table(dropped), file=self._out, flush=True)

    def make_room(self, record: logging.LogRecord) -> bool:
        """A logging filter: lets everything pass, on a line without a bar."""
        self.clear()
        return True

    def clear(self) -> None:
        """Take the bar away, so that what comes next stands on a line of its own."""
        if self._shown:
            print("\r\x1b[K", end="", file=self._bar, flush=True)
            self._shown = False
