"""A machine's profile: the line by least squares, and the table where the line is bad."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import ConfigError
from device.machine import BAD, Machine

STRAIGHT = Machine((10, 20, 40), (3.0, 5.0, 9.0), (0.5, 0.5, 1.5), first=2.0, last=1.0)
BENT = Machine((10, 20, 30, 40), (1.0, 2.0, 3.0, 8.0))


def test_the_line_of_points_on_a_line_is_that_line() -> None:
    assert STRAIGHT.fit == pytest.approx((0.2, 1.0))
    assert STRAIGHT.correlation == pytest.approx(1.0)
    assert STRAIGHT.error == pytest.approx(0.0, abs=1e-12)
    assert STRAIGHT.line(100) == pytest.approx(21.0)
    assert STRAIGHT.curve([15, 30]) == pytest.approx([4.0, 7.0])


def test_a_noisy_line_is_least_squares() -> None:
    """Of (0, 0), (1, 2), (2, 1): slope 0.5, intercept 0.5."""
    assert Machine((0, 1, 2), (0.0, 2.0, 1.0)).fit == pytest.approx((0.5, 0.5))


def test_the_table_is_used_where_the_line_is_bad_and_the_line_elsewhere() -> None:
    bad = BENT.missed > BAD
    assert bad.any()
    for n, ms, wrong in zip(BENT.tokens, BENT.ms, bad, strict=True):
        assert BENT.curve(n) == pytest.approx(ms if wrong else BENT.line(n))
    near = Machine((10, 20, 30, 40), (1.0, 2.1, 3.0, 4.0))
    assert not (near.missed > BAD).any()
    assert near.curve(20) == pytest.approx(near.line(20))
    assert near.curve(20) != pytest.approx(2.1)


def test_a_layer_that_merges_works_on_fewer_tokens_behind_it() -> None:
    """A third of the work is before the merging; finding what to merge costs extra."""
    assert STRAIGHT.layer(40, 0) == pytest.approx(9.0)
    assert STRAIGHT.layer(40, 15) == pytest.approx(STRAIGHT.line(40 - 10) + 1.5)
    both = STRAIGHT.layer([[40, 20], [20, 10]], [[15, 0], [0, 0]])
    assert both == pytest.approx(np.array([[8.5, 5.0], [5.0, 3.0]]))


def test_what_is_written_is_read_again() -> None:
    written = json.loads(json.dumps(STRAIGHT.written()))
    assert Machine.read(written) == STRAIGHT
    assert written["slope"] == pytest.approx(0.2)
    assert {"intercept", "correlation", "error"} <= set(written)


def test_a_scaled_machine_takes_so_much_longer_for_everything() -> None:
    slow = BENT.scaled(3.0)
    assert slow.layer([11, 35], [2, 0]) == pytest.approx(3 * BENT.layer([11, 35], [2, 0]))
    assert STRAIGHT.scaled(2.0).first == 4.0
    assert STRAIGHT.scaled(2.0).layer(40, 15) == pytest.approx(17.0)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"tokens": [1], "ms": [1], "merging": [0], "first": 0, "last": 0},
        {"tokens": [1, 2], "ms": [1], "merging": [], "first": 0, "last": 0},
        {"tokens": [2, 1], "ms": [1, 2], "merging": [], "first": 0, "last": 0},
        {"tokens": [1, 2], "ms": ["a", 2], "merging": [], "first": 0, "last": 0},
    ],
)
def test_what_is_no_table_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Machine.read(entry)
