"""Links that change under way: an outage, a cut, steps of bandwidth. Several strategies at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.netem.cases import DARK, FAST, SLOW, STEPS_RTT, WIFI, right, timely
from tests.netem.conftest import COUNT, TABLES, Alone, Reference
from tests.netem.world import Played, World
from tests.served import OFFERED

TOGETHER = 3
"""Strategies that share one run of a case: they share a CPU, too."""
PERIOD = 0.5
"""Seconds between two frames of a device, where the CPU is idle for two thirds of them."""
RARE = 2.0
"""Seconds between two frames while the link is down for long."""
DEADLINE = 1500.0
RESUME = 2.0
"""Seconds after the link's return by which a server's answer must be there."""
TRIES = 3
"""How often a case is played before answers count as late to resume: the machine may have had other
work at that moment. Each is told."""
TITLE = f"seconds until a server answers again, after the link is back (at most {RESUME:g})"
Play = Callable[[str, str], list[Played]]


@pytest.fixture(scope="module")
def play(here: World, open_link: Reference) -> Play:
    """play(case, strategy): what was seen when that strategy and its companions went through it.

    More than once if answers were late to resume.
    """
    known: dict[tuple[str, tuple[str, ...]], list[Played]] = {}

    def played(case: str, strategy: str) -> list[Played]:
        first = OFFERED.index(strategy) // TOGETHER * TOGETHER
        group = OFFERED[first : first + TOGETHER]
        if (case, group) not in known:
            # Measured, so that a machine with other work is asked for no more than it can do.
            busy = sum(statistics.median(r["latency_ms"] for r in open_link[s]) for s in group)
            period = max(PERIOD, 3.0 * busy / 1000.0)
            runs = known[case, group] = [CASES[case](here, group, period)]
            while len(runs) < TRIES and any(waited(runs[-1], s) > RESUME for s in group):
                runs.append(CASES[case](here, group, period))
        return known[case, group]

    return played


def every(period: float, begin: float, end: float) -> list[float]:
    """The times of frames from `begin` to before `end`, in seconds."""
    return [begin + i * period for i in range(math.ceil((end - begin) / period))]


def outage(here: World, group: tuple[str, ...], period: float) -> Played:
    """Three seconds in which packets vanish."""
    here.net.shape(WIFI)
    change = here.net.change
    script = (1.5, partial(change, DARK)), (4.5, partial(change, WIFI))
    return here.live(group, every(period, 0.0, 9.0), DEADLINE, script)


def cut(here: World, group: tuple[str, ...], period: float) -> Played:
    """The plug pulled until both sides have given the connection up, and put back in."""
    here.net.shape(WIFI)
    down, up = 1.5, 26.5
    times = every(period, 0.0, down) + every(RARE, down, up) + every(period, up, 31.0)
    try:
        return here.live(group, times, DEADLINE, ((down, here.net.cut), (up, here.net.mend)))
    finally:
        here.net.mend()


def steps(here: World, group: tuple[str, ...], period: float) -> Played:
    """Bandwidth falls from 40 to 1 Mbps and comes back."""
    here.net.queue(STEPS_RTT, FAST)
    script = (2.0, partial(here.net.rate, SLOW)), (5.0, partial(here.net.rate, FAST))
    return here.live(group, every(period, 0.0, 9.0), DEADLINE, script)


CASES: dict[str, Callable[[World, tuple[str, ...], float], Played]]
CASES = {"outage": outage, "cut": cut, "steps": steps}


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_answered_or_marked(
    name: str, strategy: str, play: Play, open_link: Reference, alone: Alone
) -> None:
    for played in play(name, strategy):
        rows = [each.row for each in played.seen[strategy]]
        assert len(rows) == played.fed <= COUNT, "not one answer for each frame"
        right(rows, open_link[strategy], alone[strategy])
        # The first had to load things.
        timely(rows[played.warm :], DEADLINE, played.lag * 1000.0)
        late = waited(played, strategy)
        TABLES[TITLE].append(
            f"{name:<8}{strategy:<10}{late:>7.2f}  of {len(rows)} frames "
            f"{sum(not row['deadline_met'] for row in rows)} late or unanswered, "
            f"{sum(row['degraded'] is not None for row in rows)} degraded; "
            f"this machine lagged {played.lag:.2f} s"
        )
    # What the machine is late with its own work is no fault of the link.
    assert late <= RESUME + played.lag, f"{late:.2f} s after the link was back: {rows[-3:]}"


def waited(played: Played, strategy: str) -> float:
    """Seconds from the link's return until an answer that has nothing to excuse."""
    back = played.done[-1]
    seen = (each for each in played.seen[strategy] if each.at >= back and whole(each.row))
    return next((each.at - back for each in seen), math.inf)


def whole(row: dict[str, Any]) -> bool:
    """Whether this is the answer that the strategy gives where nothing is wrong."""
    return row["error"] is None and row["degraded"] is None
