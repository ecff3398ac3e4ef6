"""What A-MOT's settings give on frames whose outcomes are known: its tables, the best settings.

Everything here is arithmetic on `Outcomes`, which `profiles.calibrate` measures once: right or
wrong, at every first and second ratio. Liu et al., "Adaptive Offloading of Transformer Inference
for Weak Edge Devices with Masked Autoencoders", ACM TOSN 2024, sections 4.3, 5.3 and 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server import slo

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

EDGES = tuple(round(0.1 * edge, 1) for edge in range(11))
"""Of the intervals of confidence: ten, as in the paper's Fig. 7(a)."""
INTERVALS = len(EDGES) - 1
CERTAIN = 0.98
"""A frame this sure after round one ends there, whatever the threshold tried."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, CERTAIN)
LEAST = 1e-9
"""Shares closer than this are equal."""


@dataclass(frozen=True)
class Outcomes:
    """n frames at F first ratios and R second ratios (ascending, the first of them 0).

    `confidence`: float32 [n, F], the largest softmax after round one. `right`: bool [n, F, R],
    whether the answer is; that of second ratio 0 is round one's.
    """

    firsts: tuple[float, ...]
    ratios: tuple[float, ...]
    confidence: npt.NDArray[np.float32]
    right: Bools

    def __len__(self) -> int:
        return len(self.right)

    def take(self, frames: slice) -> Outcomes:
        """Those of `frames` alone."""
        return Outcomes(self.firsts, self.ratios, self.confidence[frames], self.right[frames])

    def room(self, r1: float) -> tuple[float, ...]:
        """The second ratios that a frame has patches left for after `r1`."""
        return tuple(ratio for ratio in self.ratios if r1 + ratio <= 1 + LEAST)


@dataclass(frozen=True)
class Setting:
    """`r1` at first; below `threshold`, of interval j of confidence `ratios`[j] more ([K])."""

    r1: float
    threshold: float
    ratios: tuple[float, ...]

    @classmethod
    def same(cls, r1: float, r2: float, threshold: float) -> Setting:
        """The same second ratio for all (the paper's MOT); of 0: one round (A-MOT-O)."""
        return cls(r1, threshold if r2 else 0.0, (r2,) * INTERVALS)


@dataclass(frozen=True)
class Scored:
    """Per frame: whether the answer was right, and the share of patches sent for it."""

    right: Bools
    sent: Floats

    @property
    def accuracy(self) -> float:
        """Top-1."""
        return float(self.right.mean())

    @property
    def share(self) -> float:
        """Mean share of the patches."""
        return float(self.sent.mean())


def intervals(confidence: npt.NDArray[np.float32]) -> Ints:
    """The interval of every confidence: [edge, next edge), the last one closed."""
    return np.searchsorted(EDGES[1:-1], confidence, side="right")


def score(outcomes: Outcomes, setting: Setting) -> Scored:
    """What `setting` gives on these frames."""
    first = outcomes.firsts.index(setting.r1)
    confidence = outcomes.confidence[:, first]
    places = np.array([outcomes.ratios.index(ratio) for ratio in setting.ratios])
    chosen = np.where(confidence < setting.threshold, places[intervals(confidence)], 0)
    right = outcomes.right[np.arange(len(outcomes)), first, chosen]
    return Scored(right, setting.r1 + np.asarray(outcomes.ratios)[chosen])


def table(outcomes: Outcomes, r1: float) -> tuple[Ints, Floats]:
    """Counts d [K] and p [R, K] after first ratio `r1` (section 4.3).

    p[i, j] is the share of the frames in interval j whose smallest second ratio that makes the
    answer right is the i-th. A frame that none makes right is in no row: a column sums to at
    most 1.
    """
    first = outcomes.firsts.index(r1)
    right = outcomes.right[:, first]
    places = intervals(outcomes.confidence[:, first])
    counts = np.bincount(places, minlength=INTERVALS)
    p = np.zeros((len(outcomes.ratios), INTERVALS))
    known = right.any(axis=1)
    np.add.at(p, (right.argmax(axis=1)[known], places[known]), 1)
    return counts, p / np.maximum(counts, 1)


def uniform(outcomes: Outcomes, budget: float, firsts: Iterable[float] = ()) -> list[Setting]:
    """Every setting with the same second ratio for all; `firsts`: of these first ratios only."""
    return [
        Setting.same(r1, r2, threshold)
        for r1 in firsts or outcomes.firsts
        if r1 <= budget + LEAST
        for r2 in outcomes.room(r1)
        for threshold in (THRESHOLDS if r2 else THRESHOLDS[:1])
    ]


def adaptive(
    outcomes: Outcomes,
    budget: float,
    firsts: Iterable[float] = (),
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    weighted: bool = True,
) -> list[Setting]:
    """Equations 3 and 4 solved for these frames, at every first ratio and threshold."""
    found = []
    for r1 in firsts or outcomes.firsts:
        left = (budget - r1) * len(outcomes)
        if left < -LEAST:
            continue
        room = np.array(outcomes.room(r1))
        p = table(outcomes, r1)[1][: len(room)]
        confidence = outcomes.confidence[:, outcomes.firsts.index(r1)]
        for threshold in thresholds:
            asking = np.bincount(intervals(confidence[confidence < threshold]), minlength=INTERVALS)
            chosen = slo.solve(p, asking.astype(np.float64), room, left, weighted=weighted)
            found.append(Setting(r1, threshold, tuple(room[chosen].tolist())))
    return found


def best(outcomes: Outcomes, settings: Sequence[Setting], budget: float) -> Setting | None:
    """The most accurate within a mean share of `budget`, of equals the cheapest; None: none is."""
    scored = [(score(outcomes, setting), setting) for setting in settings]
    within = [(s.accuracy, -s.share, c) for s, c in scored if s.share <= budget + LEAST]
    return max(within, key=lambda each: each[:2], default=(0, 0, None))[2]


Method = Callable[[Outcomes, float], Setting | None]
"""Chooses a setting for a budget on the frames it is given; None: it has none so cheap."""


def one_round(outcomes: Outcomes, budget: float) -> Setting | None:
    """A-MOT-O: all of the budget at random."""
    within = [r1 for r1 in outcomes.firsts if r1 <= budget + LEAST]
    return Setting.same(max(within), 0.0, 0.0) if within else None


def mot(outcomes: Outcomes, budget: float) -> Setting | None:
    """MOT: the best of two rounds, the same second ratio for all (0 among them)."""
    return best(outcomes, uniform(outcomes, budget), budget)


def amot(outcomes: Outcomes, budget: float) -> Setting | None:
    """A-MOT: the best of two rounds, the second ratio by interval, solved with (3) weighted."""
    return best(outcomes, adaptive(outcomes, budget), budget)


def amot_as_printed(outcomes: Outcomes, budget: float) -> Setting | None:
    """A-MOT with (3) as printed: an interval counts once, however many frames are in it."""
    return best(outcomes, adaptive(outcomes, budget, weighted=False), budget)


def crossed(outcomes: Outcomes, budget: float, method: Method) -> Scored | None:
    """What `method` gives on frames that it did not choose on; None where it has no setting.

    It chooses on the even frames and is scored on the odd ones, then the other way round.
    """
    even, odd = outcomes.take(slice(0, None, 2)), outcomes.take(slice(1, None, 2))
    parts = []
    for fit, held in ((even, odd), (odd, even)):
        setting = method(fit, budget)
        if setting is None:
            return None
        parts.append(score(held, setting))
    return Scored(
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.sent for part in parts]),
    )
