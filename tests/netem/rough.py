"""Links that lose packets or let them overtake each other: right answers in time."""

from __future__ import annotations

import pytest

from tests.netem.cases import ROUGH, right, timely
from tests.netem.conftest import DEADLINE, USUAL, Alone, Reference
from tests.netem.world import World


@pytest.mark.parametrize("link", ROUGH)
def test_rough(link: str, strategy: str, here: World, open_link: Reference, alone: Alone) -> None:
    here.net.shape(ROUGH[link])
    rows = here.stored(strategy, USUAL, deadline_ms=DEADLINE)
    assert len(rows) == USUAL
    right(rows, open_link[strategy], alone[strategy])
    timely(rows, DEADLINE)
