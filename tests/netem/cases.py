"""The links that are tested, and which answers count as right on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.netem.net import Shape

Row = Mapping[str, Any]
SPARE = 2000.0

STEADY = {
    "4g": Shape(7.6, 42.2),
    "5g": Shape(14.7, 17.05),
    "wifi": Shape(37.68, 2.3),
    "1mbps": Shape(1.0, 40.0),
    "300ms": Shape(7.6, 300.0),
}
"""Links that do not change and lose nothing, so that their truth is known."""
ROUGH = {
    "loss": Shape(7.6, 42.2, loss=2.0),
    "reorder": Shape(7.6, 42.2, jitter=8.0, reorder=5.0),
}
WIFI = STEADY["wifi"]
FAST, SLOW = 40.0, 1.0
"""Mbps before and after a step."""
STEPS_RTT = 10.0
DARK = Shape(WIFI.rate, WIFI.rtt, loss=100.0)
"""Packets vanish, and nobody is told."""


def right(
    rows: Sequence[Row], reference: Sequence[Row], alone: Mapping[str, Sequence[Row]]
) -> None:
    """Every frame has exactly one answer, in order; the right one, or marked as not the best.

    `alone`: what the device answers by itself, by the strategy that its answer names.
    """
    for index, (row, truth) in enumerate(zip(rows, reference, strict=False)):
        where = f"frame {index}: {row}"
        assert row["frame"] in (truth["frame"], str(index)), where
        if row["error"] is not None:
            assert row["label"] is None, where
            assert not row["deadline_met"], where
        elif row["degraded"] is None:
            assert row["label"] == truth["label"], f"{where} but over an open link {truth}"
            assert row["source"] == truth["source"], where
        elif row["source"] == "device":
            assert row["label"] == alone[row["strategy"]][index]["label"], where
        else:
            assert row["label"] is not None, where


def timely(rows: Sequence[Row], deadline_ms: float, lag_ms: float = 0.0) -> None:
    """Answers come by their deadline or say that they did not.

    `lag_ms`: how late this machine was with its own work.
    """
    for row in rows:
        late = row["latency_ms"] > deadline_ms
        assert not (late and row["deadline_met"]), f"late and not marked: {row}"
        # A marked answer, too, comes about when it was due. The spare time is for a machine whose
        # cores are busy with other things.
        assert row["latency_ms"] <= deadline_ms + SPARE + lag_ms, f"hung: {row}"
