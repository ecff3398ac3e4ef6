"""How much each image may ask for in its second round: A-MOT's SLO-adaptive module. Pure.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4.3. Calibration measures p[i, j]: the share of the images
whose confidence after round one lies in interval j and whose smallest sufficient second ratio is
ratios[i]. All images of one interval get the same ratio x_j, chosen to

    maximise sum_j sum_(i <= x_j) p[i, j]  subject to  sum_j x_j d_j <= B - r1 N      (3), (4)

where d_j of the N images are in interval j. As printed, (3) counts an interval once however many
images it has; weighted by d_j it is the number of images expected to be right. Both are multiple-
choice knapsack problems, and `solve` solves them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
SAME = 1e-9
"""Values closer than this share of the largest are equal: sums depend on their order."""


@dataclass(frozen=True)
class Calibrated:
    """What calibration measured at first ratio `r1`: p [R, K], and images per interval [K]."""

    r1: float
    p: F64
    counts: F64


@dataclass(frozen=True)
class Table:
    """A profile's `strategies.amot.slo`.

    `ratios` [R], ascending from 0; `edges` [K+1] of the confidence intervals, from 0 to 1;
    `bytes`: codec -> mean bytes of one patch in round one and in round two.
    """

    ratios: F64
    edges: F64
    tables: tuple[Calibrated, ...]
    bytes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Table:
        """Read parsed JSON. Raises ConfigError naming what is wrong."""
        if not isinstance(raw, Mapping):
            raise ConfigError("slo is no table")
        ratios = _ascending(raw, "ratios", 1)
        edges = _ascending(raw, "edges", 2)
        if edges[-1] != 1.0:
            raise ConfigError(f"slo.edges end with {edges[-1]:g}, not with 1")
        entries = raw.get("tables")
        if not isinstance(entries, Sequence) or not entries:
            raise ConfigError("slo.tables has no table")
        shape = (len(ratios), len(edges) - 1)
        tables = tuple(_calibrated(entry, i, shape) for i, entry in enumerate(entries))
        coded = raw.get("bytes", {})
        if not isinstance(coded, Mapping):
            raise ConfigError("slo.bytes is no table")
        pairs = {str(codec): _numbers(pair, f"slo.bytes.{codec}", (2,)) for codec, pair in
                 coded.items()}  # fmt: skip
        for codec, pair in pairs.items():
            if not (pair > 0).all():
                raise ConfigError(f"slo.bytes.{codec} must be above zero")
        return cls(ratios, edges, tables, {k: (float(a), float(b)) for k, (a, b) in pairs.items()})

    def at(self, r1: float) -> Calibrated:
        """What was measured nearest to first ratio `r1`."""
        return min(self.tables, key=lambda each: abs(each.r1 - r1))

    def interval(self, confidence: float) -> int:
        """The interval j with edges[j] <= `confidence` < edges[j+1]; 1 is in the last."""
        place = int(np.searchsorted(self.edges, confidence, side="right")) - 1
        return min(max(place, 0), len(self.edges) - 2)

    def below(self, threshold: float) -> F64:
        """The share [K] of each interval that lies below `threshold`."""
        low, high = self.edges[:-1], self.edges[1:]
        return np.clip((threshold - low) / (high - low), 0.0, 1.0)


def solve(
    p: F64,
    counts: F64,
    costs: npt.NDArray[np.floating[Any]],
    budget: float,
    *,
    weighted: bool = True,
) -> Ints:
    """The choice x [K] that maximises (3) within `budget`: exact; the cheapest of equal ones.

    `p` [R, K]; `counts` [K] images per interval; `costs` [R] of each choice for one image,
    ascending from 0, in the unit of `budget`. `weighted`: count an interval by its images.

    Interval by interval, the largest first, states (cost, value) are extended by every choice.
    Kept are those that no cheaper state equals in value and that could still end best: beyond a
    state the relaxed problem, in which a choice may be taken in part, bounds what the remaining
    intervals can add, and its whole steps say what they add at least.
    """
    counts = np.asarray(counts, dtype=np.float64)
    cost = np.outer(costs, counts)
    value = np.cumsum(p, axis=0)
    value = value * counts if weighted else value
    same = SAME * max(1.0, value[-1].sum())
    limit = max(budget, 0.0) * (1 + 1e-12)
    order = np.argsort(-counts, kind="stable")
    relaxed = _relaxed(cost, value, order)
    spent = gained = np.zeros(1)
    known = 0.0
    trail: list[tuple[Ints, Ints]] = []
    for rank, column in enumerate(order):
        spends = np.add.outer(spent, cost[:, column]).ravel()
        gains = np.add.outer(gained, value[:, column]).ravel()
        states = np.flatnonzero(spends <= limit)
        room, gain = limit - spends[states], gains[states]
        steps, worth = relaxed[rank]
        known = max(known, (gain + worth[np.searchsorted(steps, room, side="right") - 1]).max())
        states = states[gain + np.interp(room, steps, worth) >= known - same]
        states = states[np.lexsort((-gains[states], spends[states]))]
        best = np.maximum.accumulate(gains[states])
        states = states[np.concatenate(([True], best[1:] > best[:-1]))]
        trail.append((states // len(cost), states % len(cost)))
        spent, gained = spends[states], gains[states]
    chosen = np.zeros(len(counts), dtype=np.intp)
    state = int(np.argmax(gained >= gained[-1] - same))  # the cheapest of equal ones
    for column, (parents, choices) in zip(order[::-1], reversed(trail), strict=True):
        chosen[column] = choices[state]
        state = parents[state]
    return chosen


def _relaxed(cost: F64, value: F64, order: Ints) -> list[tuple[F64, F64]]:
    """Per rank in `order`: what the later intervals add at most, by what they may cost.

    (costs, values): the corners of a concave function, each of them a whole solution.
    """
    corners = [_corners(cost[:, column], value[:, column]) for column in order]
    climbs = [
        ((high - low) / (dear - cheap), dear - cheap, high - low, rank)
        for rank, points in enumerate(corners)
        for (cheap, low), (dear, high) in pairwise(points)
    ]
    climbs.sort(key=lambda climb: -climb[0])
    table = np.array(climbs).reshape(-1, 4)
    found = []
    least = 0.0
    for rank in reversed(range(len(order))):
        later = table[table[:, 3] > rank]
        steps = np.concatenate(([0.0], later[:, 1])).cumsum()
        found.append((steps, np.concatenate(([least], later[:, 2])).cumsum()))
        least += corners[rank][0][1]
    return found[::-1]


def _corners(cost: F64, value: F64) -> list[tuple[float, float]]:
    """The corners (cost, value) of the concave hull of one interval's choices, from cost 0 on."""
    corners: list[tuple[float, float]] = []
    for x, y in zip(cost.tolist(), value.tolist(), strict=True):
        if corners and y <= corners[-1][1]:
            continue
        if corners and x <= corners[-1][0]:
            corners.pop()
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y - y1) * (x1 - x0) < (y1 - y0) * (x - x1):
                break
            corners.pop()
        corners.append((x, y))
    return corners


def _ascending(raw: Mapping[str, Any], key: str, least: int) -> F64:
    values = _numbers(raw.get(key), f"slo.{key}", (None,))
    if len(values) < least or values[0] != 0 or values[-1] > 1:
        raise ConfigError(f"slo.{key} must begin with 0 and lie within 0 to 1")
    if any(low >= high for low, high in pairwise(values)):
        raise ConfigError(f"slo.{key} must ascend")
    return values


def _calibrated(raw: Any, number: int, shape: tuple[int, int]) -> Calibrated:
    where = f"slo.tables[{number}]"
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is no table")
    r1 = float(_numbers(raw.get("r1"), f"{where}.r1", ()))
    if not 0 < r1 <= 1:
        raise ConfigError(f"{where}.r1 is {r1:g}, not a ratio above 0")
    counts = _numbers(raw.get("counts"), f"{where}.counts", shape[1:])
    p = _numbers(raw.get("p"), f"{where}.p", shape)
    if (counts < 0).any() or (p < 0).any():
        raise ConfigError(f"{where} has a number below zero")
    if (p.sum(axis=0) > 1 + 1e-6).any():
        raise ConfigError(f"{where}.p: a column sums to more than 1")
    return Calibrated(r1, p, counts)


def _numbers(raw: Any, where: str, shape: tuple[int | None, ...]) -> F64:
    """`raw` as finite numbers of `shape`, None: any length. Raises ConfigError."""
    try:
        values = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} does not hold numbers alone") from None
    right = values.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, values.shape, strict=True)
    )
    if not right:
        wanted = " x ".join("any" if n is None else str(n) for n in shape) or "one number"
        raise ConfigError(f"{where} is of shape {values.shape}, not {wanted}")
    if not np.isfinite(values).all():
        raise ConfigError(f"{where} does not hold numbers alone")
    return values
