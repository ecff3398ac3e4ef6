"""A-MOT's SLO-adaptive module: the knapsack is solved exactly, and a table is read with care."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from server.slo import F64, Table, solve

SLO: dict[str, Any] = {
    "ratios": [0.0, 0.1, 0.3],
    "edges": [0.0, 0.5, 1.0],
    "tables": [
        {"r1": 0.25, "counts": [30, 70], "p": [[0.2, 0.7], [0.3, 0.1], [0.1, 0.1]]},
        {"r1": 0.5, "counts": [10, 90], "p": [[0.4, 0.9], [0.3, 0.0], [0.0, 0.0]]},
    ],
    "bytes": {"mosaic": [50.0, 60.0], "raw": [768, 768]},
}


def table(**changes: Any) -> Table:
    return Table.from_mapping({**copy.deepcopy(SLO), **changes})


def worth(p: F64, counts: F64, chosen: Any, weighted: bool) -> float:
    """(3) of the paper, weighted or as printed."""
    right = np.cumsum(p, axis=0)[list(chosen), range(len(counts))]
    return float((right * counts if weighted else right).sum())


@st.composite
def problems(draw: st.DrawFn) -> tuple[F64, F64, F64, float, bool]:
    """p [R, K], counts [K], costs [R], budget, weighted."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shares = st.lists(st.integers(0, 5), min_size=rows, max_size=rows)
    p = np.array([draw(shares) for _ in range(columns)], float).T / (5 * rows)
    counts = draw(st.lists(st.integers(0, 6), min_size=columns, max_size=columns))
    dearer = draw(st.lists(st.integers(0, 5), min_size=rows - 1, max_size=rows - 1))
    costs = np.concatenate(([0.0], np.cumsum(dearer)))
    return p, np.array(counts, float), costs, draw(st.integers(-3, 60)), draw(st.booleans())


@given(problems())
def test_no_choice_within_the_budget_is_better_nor_as_good_and_cheaper(
    problem: tuple[F64, F64, F64, float, bool],
) -> None:
    p, counts, costs, budget, weighted = problem
    every = [
        (worth(p, counts, chosen, weighted), float((counts * costs[list(chosen)]).sum()))
        for chosen in product(range(len(costs)), repeat=len(counts))
    ]
    affordable = [each for each in every if each[1] <= max(budget, 0)]
    best = max(value for value, _ in affordable)
    cheapest = min(cost for value, cost in affordable if value >= best - 1e-7)
    found = solve(p, counts, costs, budget, weighted=weighted)
    assert worth(p, counts, found, weighted) == pytest.approx(best, abs=1e-7)
    assert (counts * costs[found]).sum() == pytest.approx(cheapest)


def by_every_cost(p: F64, counts: F64, costs: F64, budget: int, weighted: bool) -> float:
    """The best value, found the slow way: by dynamic programming over every whole cost."""
    best = np.zeros(budget + 1)
    for j in range(len(counts)):
        right = np.cumsum(p[:, j]) * (counts[j] if weighted else 1.0)
        wider = np.full_like(best, -np.inf)
        for value, cost in zip(right, (counts[j] * costs).astype(int), strict=True):
            if cost <= budget:
                wider[cost:] = np.maximum(wider[cost:], best[: budget + 1 - cost] + value)
        best = wider
    return float(best.max())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_thousand_images_are_solved_as_exactly(seed: int, weighted: bool) -> None:
    """10 intervals, 11 ratios, 1,000 images that lie evenly, or nearly all in one interval."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(12, 0.3), 10).T[:11]
    counts = random.multinomial(1000, random.dirichlet(np.full(10, 0.5))).astype(float)
    costs = np.round(np.linspace(0, 0.5, 11) * 196)
    budget = int(random.uniform(0, 0.4) * 196 * 1000)
    found = solve(p, counts, costs, budget, weighted=weighted)
    assert (counts * costs[found]).sum() <= budget
    best = by_every_cost(p, counts, costs, budget, weighted)
    assert worth(p, counts, found, weighted) == pytest.approx(best, abs=1e-6)


def test_the_printed_objective_forgets_how_many_images_an_interval_has() -> None:
    p = np.array([[0.0, 0.0], [0.4, 0.5]])
    counts, costs = np.array([10.0, 1.0]), np.array([0.0, 1.0])
    assert solve(p, counts, costs, 10.0).tolist() == [1, 0]
    assert solve(p, counts, costs, 10.0, weighted=False).tolist() == [0, 1]


def test_nothing_to_spend_asks_for_nothing() -> None:
    p = np.array([[0.1, 0.2], [0.5, 0.5]])
    for budget in (0.0, -5.0):
        assert not solve(p, np.array([3.0, 4.0]), np.array([0.0, 2.0]), budget).any()


def test_a_table_is_read() -> None:
    found = table()
    assert found.ratios.tolist() == [0.0, 0.1, 0.3]
    assert found.bytes == {"mosaic": (50.0, 60.0), "raw": (768.0, 768.0)}
    assert [found.at(r1).r1 for r1 in (0.1, 0.3, 0.4, 0.9)] == [0.25, 0.25, 0.5, 0.5]
    assert [found.interval(c) for c in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]
    assert found.below(0.8).tolist() == pytest.approx([1.0, 0.6])
    assert table(bytes={}).bytes == {}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ratios": [0.1, 0.2]}, r"slo.ratios must begin with 0"),
        ({"ratios": [0.0, 0.3, 0.2]}, r"slo.ratios must ascend"),
        ({"ratios": [0.0, 0.1, 1.2]}, r"slo.ratios .* within 0 to 1"),
        ({"ratios": ["x"]}, r"slo.ratios does not hold numbers alone"),
        ({"ratios": None}, r"slo.ratios"),
        ({"edges": [0.0, 0.5, 0.9]}, r"slo.edges end with 0.9"),
        ({"edges": [0.0]}, r"slo.edges"),
        ({"edges": [0.0, float("nan"), 1.0]}, r"slo.edges does not hold numbers alone"),
        ({"tables": []}, r"slo.tables has no table"),
        ({"tables": ["x"]}, r"slo.tables\[0\] is no table"),
        ({"tables": [{**SLO["tables"][0], "r1": 0}]}, r"slo.tables\[0\].r1 is 0"),
        ({"tables": [{**SLO["tables"][0], "counts": [1]}]}, r"tables\[0\].counts .* not 2"),
        ({"tables": [{**SLO["tables"][0], "p": [[0.1, 0.1]]}]}, r"tables\[0\].p .* not 3 x 2"),
        ({"tables": [{**SLO["tables"][0], "p": [[0.5, 0], [0.5, 0], [0.1, 0]]}]}, r"more than 1"),
        ({"tables": [{**SLO["tables"][0], "counts": [-1, 2]}]}, r"below zero"),
        ({"bytes": {"mosaic": [0, 1]}}, r"slo.bytes.mosaic must be above zero"),
        ({"bytes": {"mosaic": 3}}, r"slo.bytes.mosaic"),
        ({"bytes": []}, r"slo.bytes is no table"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        table(**changes)


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="slo is no table"):
        Table.from_mapping([])  # type: ignore[arg-type]
