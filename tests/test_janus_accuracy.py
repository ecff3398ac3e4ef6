"""Two accounts of what merging and coding cost: the published line's, and our classifier's."""

from __future__ import annotations

import pytest

from bench import accuracy
from common.merging import fixed, remaining
from device.scheduler import Decision
from device.steering import LOSS
from profiles.replay import Frame


def frame(coding: str | None, merged: float, gave_up: bool = False) -> Frame:
    chosen = Decision(0.0, 0, coding, 1.0, 1.0, 1.0, True)
    loss = merged + (0.0 if gave_up else LOSS.get(coding or "", 0.0))
    return Frame(0.0, 3.0, 1.0, 1.0, 1.0, chosen, loss, gave_up=gave_up)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "CODED", {"jpeg-50": 2.0})
    merged = {"declining": ((0.0, 0.0), (0.5, 1.0), (1.0, 9.0)), "fixed": ((0.0, 0.0), (1.0, 4.0))}
    monkeypatch.setattr(accuracy, "MERGED", merged)


@pytest.mark.usefixtures("costs")
def test_coding_costs_where_the_answer_rests_on_it() -> None:
    frames = [frame("jpeg-50", 0.2), frame("jpeg-50", 0.4, gave_up=True), frame(None, 0.3)]
    assert [accuracy.merged(each) for each in frames] == pytest.approx([0.2, 0.4, 0.3])
    assert accuracy.coded(frames) == pytest.approx(2.0 / 3)
    assert accuracy.coded([frame("fp16", 0.1)]) == 0.0


@pytest.mark.usefixtures("costs")
def test_merging_costs_what_was_measured_at_the_same_share_behind_the_first_layer() -> None:
    # Of 6 layers the first has all tokens: a mean share of 5 / 12 is one half behind it.
    assert accuracy.own([frame(None, 5 / 12)], 6, "declining") == pytest.approx(1.0)
    assert accuracy.own([frame(None, 5 / 12)], 6, "fixed") == pytest.approx(2.0)
    both = [frame("jpeg-50", 5 / 24), frame("jpeg-50", 0.0)]
    assert accuracy.own(both, 6, "declining") == pytest.approx(2.0 + 0.25)


@pytest.mark.parametrize("schedule", ["declining", "fixed"])
def test_what_was_measured_begins_with_nothing_and_rises(schedule: str) -> None:
    shares = [share for share, _ in accuracy.MERGED[schedule]]
    assert accuracy.MERGED[schedule][0] == (0.0, 0.0)
    assert shares == sorted({*shares})
    # As far as ToMe's r = 23 of ViT-L@384 goes it was measured, and not extrapolated.
    tokens = remaining(fixed(23, 24, 577), 577)
    assert shares[-1] > 1 - sum(tokens[1:-1]) / 577 / 23
