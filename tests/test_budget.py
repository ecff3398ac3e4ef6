"""Budgets: what frames may ask for, together, and what a person may write for it."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from bench import slo
from common.errors import ConfigError
from common.units import parse_bytes
from device.cli import Settings as DeviceSettings
from device.cli import parameters
from device.strategies.amot import PARAMS
from server.budget import FRAMES, HEAD, WINDOWS, Allowance, Ask, Bucket, Terms, Window
from server.settings import Settings
from server.slo import F64, Table, solve

TOTAL, SENT = 196, 49
K, RATIOS = 10, np.linspace(0.0, 0.5, 11)


def calibrated() -> Table:
    """A plausible table: the surer the first answer, the more often it is right, and the sooner."""
    middle = (np.arange(K) + 0.5) / K
    p = np.zeros((len(RATIOS), K))
    p[0] = middle
    fall = np.exp(-np.arange(1, len(RATIOS))[:, None] / (1 + 4 * (1 - middle)))
    p[1:] = fall / fall.sum(axis=0) * (1 - middle) * 0.8
    entry = {"r1": SENT / TOTAL, "counts": [20 + 18 * j for j in range(K)], "p": p.tolist()}
    edges = np.linspace(0, 1, K + 1).round(6).tolist()
    return Table.from_mapping(
        {
            "ratios": RATIOS.round(6).tolist(),
            "edges": edges,
            "tables": [entry],
            "bytes": {"mosaic": [40.0, 60.0]},
        }
    )


def terms(budget: float | None = 0.35 * TOTAL, objective: str = "weighted", **more: Any) -> Terms:
    given = {"threshold": 0.8, "r2": 0.2, "objective": objective, "budget": budget, **more}
    return Terms(SENT, TOTAL, **given)


def confidences(count: int, seed: int = 0) -> F64:
    """Drawn as the calibration's frames lie."""
    random = np.random.default_rng(seed)
    weights = calibrated().at(0.25).counts
    place = random.choice(K, count, p=weights / weights.sum())
    return np.asarray((place + random.random(count)) / K)


def expected(extras: list[int], sure: F64) -> float:
    """The mean share of right answers that the table promises."""
    table = calibrated()
    right = np.cumsum(table.at(0.25).p, axis=0)
    steps = np.rint(table.ratios * TOTAL)
    choices = [int(np.flatnonzero(steps <= extra)[-1]) for extra in extras]
    return float(np.mean([right[i, table.interval(c)] for i, c in zip(choices, sure, strict=True)]))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("share", [0.27, 0.35, 0.6])
def test_a_thousand_frames_stay_within_the_budget_and_do_as_well_as_one_batch(
    batch: int, share: float
) -> None:
    window = Window(terms(share * TOTAL), calibrated())
    sure = confidences(1000)
    extras: list[int] = []
    for start in range(0, 1000, batch):
        part = sure[start : start + batch].tolist()
        extras += window.decide(part, [SENT] * len(part), [TOTAL] * len(part))
        # At any time, but for one frame.
        assert SENT * len(extras) + sum(extras) <= share * TOTAL * len(extras) + TOTAL
    assert all(extra == 0 for extra, c in zip(extras, sure, strict=True) if c >= 0.8)
    table = calibrated()
    unsure = sure[sure < 0.8]
    counts = np.bincount([table.interval(c) for c in unsure], minlength=K).astype(float)
    patches = np.rint(table.ratios * TOTAL)
    chosen = solve(table.at(0.25).p, counts, patches, (share * TOTAL - SENT) * 1000)
    at_once = [int(patches[chosen[table.interval(c)]]) if c < 0.8 else 0 for c in sure]
    assert expected(extras, sure) >= expected(at_once, sure) - 0.01
    assert sum(extras) >= 0.9 * sum(at_once)


def test_hard_frames_live_on_what_easy_ones_save() -> None:
    window = Window(terms(0.35 * TOTAL), calibrated())
    for _ in range(50):
        window.decide([0.95], [SENT], [TOTAL])
    hard = [window.decide([0.15], [SENT], [TOTAL])[0] for _ in range(10)]
    assert min(hard) / TOTAL >= 0.3  # three times what the budget leaves one frame
    more = [window.decide([0.15], [SENT], [TOTAL])[0] for _ in range(800)]
    assert np.mean(more[-400:]) <= 0.1 * TOTAL + TOTAL / 400


def test_savings_are_those_of_one_window_at_most() -> None:
    window = Window(terms(0.35 * TOTAL), calibrated())
    for _ in range(2 * FRAMES):
        window.decide([0.95], [SENT], [TOTAL])
    assert window.balance == pytest.approx(FRAMES * (0.35 * TOTAL - SENT))


def test_a_first_round_that_uses_up_the_budget_leaves_no_second() -> None:
    window = Window(terms(0.2 * TOTAL), calibrated())
    extras = [window.decide([0.1], [SENT], [TOTAL])[0] for _ in range(100)]
    assert sum(extras) <= TOTAL


def test_bytes_are_settled_by_what_came() -> None:
    """The estimate is half of what patches really cost: the mean holds all the same."""
    budget, first, patch = 4000.0, HEAD + 40 * SENT, 120.0
    allowance = Allowance(calibrated(), None)
    given = terms(budget, in_bytes=True, scale=1.5)
    spent = 0.0
    for sure in confidences(600):
        (promise,) = allowance.decide([Ask(given, first)], [float(sure)], 0.0)
        spent += first
        if promise.extra:
            assert promise.cost == pytest.approx(promise.extra * 60.0 + HEAD)
            size = int(promise.extra * patch + HEAD)
            allowance.settle(promise, size)
            spent += size
    assert 0.8 * budget <= spent / 600 <= budget + TOTAL * patch / 600


def test_fixed_is_r2_for_every_frame_that_needs_more() -> None:
    for table in (None, calibrated()):
        window = Window(terms(None, "fixed"), table)
        extras = [window.decide([c], [SENT], [TOTAL])[0] for c in (0.1, 0.79, 0.8, 0.95)]
        assert extras == [39, 39, 0, 0]
    window = Window(terms(0.3 * TOTAL, "fixed"), None)
    extras = [window.decide([0.1], [SENT], [TOTAL])[0] for _ in range(1000)]
    assert sum(extras) <= (0.3 * TOTAL - SENT) * 1000 + TOTAL + 1
    assert sum(extras) >= (0.3 * TOTAL - SENT) * 1000 - TOTAL


def test_windows_are_bounded_and_each_has_its_own_account() -> None:
    allowance = Allowance(calibrated(), None)
    for i in range(3 * WINDOWS):
        asks = [Ask(terms(60.0 + i), 1000), Ask(terms(150.0), 1000)]
        allowance.decide(asks, [0.1, 0.1], 0.0)
    assert len(allowance._windows) == WINDOWS


def test_the_device_bounds_its_own_second_round() -> None:
    allowance = Allowance(calibrated(), None)
    ask = [Ask(terms(TOTAL), HEAD + 40 * SENT, afford) for afford in (0, 50, HEAD + 410, inf)]
    extras = [promise.extra for promise in allowance.decide(ask, [0.1] * 4, 0.0)]
    assert extras[:3] == [0, 0, 10]
    assert extras[3] > 10


def test_a_bucket_fills_by_time_and_pays_for_all_that_comes() -> None:
    received = 0
    bucket = Bucket(1000.0, lambda: received, now=5.0)
    assert bucket.left(5.0) == 1000.0
    received = 400
    assert bucket.left(5.0) == 600.0
    bucket.hold(500.0)
    assert bucket.left(5.0) == 100.0
    bucket.hold(-500.0)  # it came, and is charged by what it really had
    received += 450
    assert bucket.left(5.0) == 150.0
    assert bucket.left(5.5) == 650.0
    assert bucket.left(99.0) == 1000.0
    received += 10**6
    assert bucket.left(99.0) == 0.0
    assert bucket.left(100.5) == pytest.approx(500.0)  # debts are bounded, too


@pytest.mark.parametrize("table", [None, calibrated()])
def test_all_devices_together_stay_within_the_rate(table: Table | None) -> None:
    rate, received = 14_000.0, 0
    bucket = Bucket(rate, lambda: received, now=0.0)
    allowance = Allowance(table, bucket)
    given = [Ask(terms(None if table is None else 0.6 * TOTAL, "fixed" if table is None else
                       "weighted", threshold=t), HEAD + 20 * SENT) for t in (0.8, 0.9)]  # fmt: skip
    sure = confidences(400)
    seconds = 0
    for start in range(0, 400, 8):  # eight frames of two kinds of devices, every second
        received += 8 * given[0].size
        asks = [given[i % 2] for i in range(8)]
        promises = allowance.decide(asks, sure[start : start + 8].tolist(), float(seconds))
        for ask, promise in zip(asks, promises, strict=True):
            if promise.extra:
                size = round(promise.extra * ask.patch + HEAD)
                allowance.settle(promise, size)
                received += size
        seconds += 1
    assert received <= rate * (seconds + 1)
    assert received >= 0.8 * rate * seconds


def test_the_bucket_gives_where_it_helps_most() -> None:
    table = calibrated()
    ask = Ask(terms(None, "fixed", r2=0.5), HEAD + 40 * SENT)
    lone = Allowance(table, Bucket(3000.0, lambda: 0, now=0.0))
    promises = lone.decide([ask] * 6, [0.05, 0.15, 0.35, 0.45, 0.75, 0.95], 0.0)
    assert sum(promise.size for promise in promises) <= 3000
    assert promises[-1].extra == 0
    assert any(promise.extra for promise in promises)
    assert len({promise.extra for promise in promises[:-1]}) > 1


def test_the_bench_draws_frames_as_the_table_has_them() -> None:
    table = calibrated()
    confidence, needed = slo.drawn(table, 0.25, 4000, seed=1)
    at_once = needed == 0
    for low, high in ((0.2, 0.5), (0.5, 1.0)):
        inside = (confidence >= low) & (confidence < high)
        assert at_once[inside].mean() == pytest.approx(confidence[inside].mean(), abs=0.06)
    assert np.isinf(needed).mean() == pytest.approx(0.2 * (1 - confidence.mean()), abs=0.03)
    right, share, _ = slo.simulated(table, terms(), (confidence[:300], needed[:300]), batch=8)
    assert at_once.mean() < right <= 1 - np.isinf(needed[:300]).mean()
    assert 0.3 < share <= 0.35 + 1 / 300


# What people write.


@pytest.mark.parametrize(
    ("text", "size"),
    [("3000", 3000), ("3kB", 3000), ("3 KB", 3000), ("2.5MB", 2.5e6), ("1g", 1e9), ("0.5k", 500)],
)
def test_amounts_of_bytes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "3 TB", "k", "1..2", "nan", "inf", "3kB/s", "1e999"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("value", "budget"),
    [("40%", 0.4), (0.4, 0.4), ("0.4", 0.4), ("100%", 1.0), (1, 1.0), ("auto", 1.0),
     ("3000", 3000.0), ("3kB", 3000.0), (0, 0.0), (0.0, 0.0), (1.0, 1.0)],
)  # fmt: skip
def test_a_devices_budget(value: Any, budget: float) -> None:
    assert PARAMS["budget"].check("budget", value) == budget


@pytest.mark.parametrize("value", ["140%", "0%", "-1", "much", "nan", "x%", "2GB", None, True, ""])
def test_a_devices_budget_is_checked(value: Any) -> None:
    with pytest.raises(ConfigError, match="a share of the patches such as 40%"):
        PARAMS["budget"].check("budget", value)


def test_the_server_reads_a_rate() -> None:
    assert Settings(profile="x").rate is None
    assert Settings(profile="x", budget="2MB/s").rate == 2e6
    for wrong in ("2MB/h", "fast", "0", "-1MB/s"):
        with pytest.raises(ConfigError, match="give a rate such as 2MB/s"):
            Settings(profile="x", budget=wrong).check()


def test_the_device_has_a_flag_for_it() -> None:
    assert "budget" in DeviceSettings.__dataclass_fields__
    assert parameters("budget=40%,recovery=none") == {"budget": "40%", "recovery": "none"}
