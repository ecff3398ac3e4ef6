"""Links that change under way: an outage, a cut, steps of bandwidth. All strategies at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.netem.cases import DARK, FAST, SLOW, WIFI, right, timely
from tests.netem.conftest import COUNT, OFFERED, TABLES
from tests.netem.world import Seen, World

Reference = dict[str, list[dict[str, Any]]]
PERIOD = {"outage": 0.5, "cut": 1.0, "steps": 0.5}
DEADLINE = 1500.0
RESUME = 2.0
"""Seconds after the link's return by which a server's answer must be there."""
TITLE = f"seconds until a server answers again, after the link is back (at most {RESUME:g})"
TABLES[TITLE] = []
QUEUED = 2.0
"""Seconds that packets may still stand in netem's queue after a step up."""
SECONDS = {"outage": 9.0, "cut": 31.0, "steps": 9.0}
Act = tuple[float, Callable[[], None]]
Outcome = tuple[dict[str, list[Seen]], list[float], float]


def played(here: World, name: str, *script: Act) -> Outcome:
    """Frames for as long as the case takes, while `script` is carried out."""
    return here.live(OFFERED, SECONDS[name], PERIOD[name], DEADLINE, script)


def sent(name: str) -> int:
    """How many frames a device was fed: one to warm up, then one every period."""
    return 1 + int(SECONDS[name] / PERIOD[name])


@pytest.fixture(scope="module")
def outage(here: World, open_link: Reference) -> Outcome:
    """Three seconds in which packets vanish."""
    here.net.shape(WIFI)
    change = here.net.change
    return played(here, "outage", (1.5, partial(change, DARK)), (4.5, partial(change, WIFI)))


@pytest.fixture(scope="module")
def cut(here: World, open_link: Reference) -> Outcome:
    """The plug pulled until both sides have given the connection up, and put back in."""
    here.net.shape(WIFI)
    try:
        return played(here, "cut", (1.5, here.net.cut), (26.5, here.net.mend))
    finally:
        here.net.mend()


@pytest.fixture(scope="module")
def steps(here: World, open_link: Reference) -> Outcome:
    """Bandwidth falls from 40 to 1 Mbps and comes back."""
    here.net.shape(FAST)
    change = here.net.change
    return played(here, "steps", (2.0, partial(change, SLOW)), (5.0, partial(change, FAST)))


@pytest.mark.parametrize("name", ["outage", "cut", "steps"])
def test_every_frame_is_answered_or_marked(
    name: str, strategy: str, request: pytest.FixtureRequest, open_link: Reference
) -> None:
    seen, done, lag = request.getfixturevalue(name)
    rows = [each.row for each in seen[strategy]]
    assert len(rows) == sent(name) <= COUNT, "not one answer for each frame"
    right(rows, open_link[strategy], open_link.get("local", []))
    timely(rows[1:], DEADLINE, lag * 1000.0)  # the first had to load things
    back = done[-1]
    after = [each for each in seen[strategy] if each.at >= back and whole(each.row)]
    assert after, "no answer from a server after the link was back"
    waited = after[0].at - back
    TABLES[TITLE].append(
        f"{name:<8}{strategy:<10}{waited:>7.2f}  of {len(rows)} frames "
        f"{sum(not row['deadline_met'] for row in rows)} late or unanswered, "
        f"{sum(row['degraded'] is not None for row in rows)} degraded; "
        f"this machine lagged {lag:.2f} s"
    )
    # What the machine is late with its own work is no fault of the link.
    # netem lets what it took in at 1 Mbps leave at 1 Mbps, even after the rate has risen.
    queued = QUEUED if name == "steps" else 0.0
    assert waited <= RESUME + queued + lag, f"{waited:.2f} s after the link was back"


def whole(row: dict[str, Any]) -> bool:
    """Whether this is the answer that the strategy gives where nothing is wrong."""
    return row["error"] is None and row["degraded"] is None
