"""Memory between rounds: bounded in bytes, count and time; given out once."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refused
from server.memory import NOTHING, Memory, MemoryLimits, Recalled


def memory(**limits: float) -> Memory:
    return Memory(MemoryLimits(**limits))  # type: ignore[arg-type]


def test_it_gives_back_once() -> None:
    kept = memory()
    assert kept.keep(7, "amot", "frame", 10, now=0.0)
    assert kept.bytes == 10
    assert kept.recall(7, "amot", now=1.0) == "frame"
    with pytest.raises(Refused, match="forgotten"):
        kept.recall(7, "amot", now=1.0)
    assert kept.bytes == 0


def test_another_strategy_does_not_get_it() -> None:
    kept = memory()
    kept.keep(7, "amot", "frame", 10, now=0.0)
    with pytest.raises(Refused, match="forgotten"):
        kept.recall(7, "dimec", now=0.0)
    assert kept.recall(7, "amot", now=0.0) == "frame"


def test_it_expires() -> None:
    kept = memory(seconds=30.0)
    kept.keep(1, "amot", "old", 10, now=0.0)
    kept.keep(2, "amot", "new", 10, now=20.0)
    kept.expire(30.0)
    assert (len(kept), kept.bytes) == (1, 10)
    with pytest.raises(Refused, match="forgotten"):
        kept.recall(2, "amot", now=50.0)


def test_the_oldest_makes_room() -> None:
    kept = memory(bytes=100, count=3)
    for id in range(4):
        assert kept.keep(id, "amot", id, 10, now=0.0)
    with pytest.raises(Refused):
        kept.recall(0, "amot", now=0.0)
    assert kept.keep(9, "amot", "large", 85, now=0.0)
    assert (len(kept), kept.bytes) == (2, 95)


def test_what_is_larger_than_all_there_is_is_not_kept() -> None:
    kept = memory(bytes=100)
    kept.keep(1, "amot", "small", 10, now=0.0)
    assert not kept.keep(2, "amot", "huge", 101, now=0.0)
    assert kept.recall(1, "amot", now=0.0) == "small"


def test_an_id_used_again_replaces() -> None:
    kept = memory()
    kept.keep(1, "amot", "first", 10, now=0.0)
    kept.keep(1, "amot", "second", 20, now=0.0)
    assert kept.bytes == 20
    assert kept.recall(1, "amot", now=0.0) == "second"


@given(
    st.lists(
        st.tuples(st.sampled_from(("keep", "recall")), st.integers(1, 6), st.integers(0, 60),
                  st.floats(0, 2)),
        max_size=60,
    )
)  # fmt: skip
def test_bounds_hold_through_any_history(history: list[tuple[str, int, int, float]]) -> None:
    kept = memory(bytes=100, count=4, seconds=3.0)
    now = 0.0
    for act, id, size, later in history:
        now += later
        if act == "keep":
            kept.keep(id, "amot", (id, size), size, now)
        else:
            with suppress(Refused):
                assert kept.recall(id, "amot", now)[0] == id
        assert 0 <= kept.bytes <= 100
        assert len(kept) <= 4
    kept.expire(now + 3.0)
    assert (len(kept), kept.bytes) == (0, 0)


def test_prepare_sees_only_what_was_recalled_for_its_query() -> None:
    assert Recalled(5, "frame").recall(5) == "frame"
    for recalled, id in ((Recalled(5, "frame"), 6), (NOTHING, 0), (NOTHING, 5)):
        with pytest.raises(Refused, match="forgotten"):
            recalled.recall(id)
