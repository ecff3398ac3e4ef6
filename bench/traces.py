"""Measured links to replay: megabits per second over time, from CSV files.

A file has a header of two columns, seconds and Mbps, such as `t_s,mbps` or `t_s,uplink_mbps`, and
one line per step. Each value holds until the next line; the last one as long as the one before.
Zeros are outages. A trace that is over starts again.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

STEP = 0.1
"""Seconds of a trace of one line; and how often a shaper follows a trace."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`mbps[i]` holds from `times[i]` (seconds, from 0) to `times[i + 1]`, the last to `length`."""

    times: tuple[float, ...]
    mbps: tuple[float, ...]
    length: float

    @classmethod
    def constant(cls, mbps: float) -> Trace:
        """A link that does not change. math.inf: one without a limit."""
        return cls((0.0,), (mbps,), math.inf)

    @property
    def mean(self) -> float:
        """Mbps over the whole trace."""
        if math.isinf(self.length):
            return self.mbps[0]
        return self._bits(self.length) / 1e6 / self.length

    def at(self, seconds: float) -> float:
        """Mbps `seconds` after the start."""
        return self.mbps[self._step(self._within(seconds))]

    def finish(self, start: float, bits: float) -> float:
        """When `bits` that begin to leave at `start` have left; math.inf if never."""
        left, now = bits, self._within(start)
        if not math.isinf(self.length):
            whole = self._bits(self.length)
            if whole <= 0.0:
                return math.inf
            # Whole repetitions first, so that what follows walks at most two of them. One less
            # than fit: the last may end in an outage, which is over after the bits have left.
            rounds = max(0, math.ceil(left / whole) - 1)
            start += rounds * self.length
            left -= rounds * whole
        step = self._step(now)
        while left > 0.0:
            until = self.times[step + 1] if step + 1 < len(self.times) else self.length
            room = self.mbps[step] * 1e6 * (until - now) if self.mbps[step] else 0.0
            if room >= left:
                return start + (left / (self.mbps[step] * 1e6))
            if math.isinf(until):
                return math.inf
            left -= room
            start += until - now
            step = (step + 1) % len(self.times)
            now = self.times[step]
        return start

    def _within(self, seconds: float) -> float:
        return 0.0 if math.isinf(self.length) else seconds % self.length

    def _step(self, within: float) -> int:
        return max(0, bisect_right(self.times, within) - 1)

    def _bits(self, length: float) -> float:
        ends = (*self.times[1:], length)
        return sum(
            mbps * 1e6 * (end - begin)
            for mbps, begin, end in zip(self.mbps, self.times, ends, strict=True)
        )


def load(path: Path) -> Trace:
    """The trace in a CSV file. Raises ConfigError saying which line is wrong."""
    try:
        with path.open(newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path}: {error}") from None
    if not lines or lines[0][:1] != ["t_s"] or not lines[0][-1].endswith("mbps"):
        raise ConfigError(f"trace {path}: the first line must be t_s,mbps")
    times: list[float] = []
    rates: list[float] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            time, mbps = map(float, line)
        except ValueError:
            raise ConfigError(f"trace {path}, line {number}: give seconds,Mbps") from None
        if not (0 <= mbps < math.inf and math.isfinite(time)) or (times and time <= times[-1]):
            raise ConfigError(
                f"trace {path}, line {number}: seconds must rise and Mbps be 0 or more"
            )
        times.append(time)
        rates.append(mbps)
    if not times:
        raise ConfigError(f"trace {path}: there is nothing after the first line")
    first = times[0]
    last = times[-1] - times[-2] if len(times) > 1 else STEP
    return Trace(tuple(t - first for t in times), tuple(rates), times[-1] - first + last)


def folder(path: Path) -> dict[str, Trace]:
    """Every trace of a folder, by file name without its ending. Raises ConfigError."""
    found = {file.stem: load(file) for file in sorted(path.glob("*.csv"))}
    if not found:
        raise ConfigError(f"there is no .csv trace in {path}")
    return found
