"""The offline phase of DIMEC-DC and DIMEE: pools of samples, thresholds by the reward, our scores.

Bajpai and Hanawal, "Distributed Inference on Mobile Edge and Cloud" (a data-cartography and an
early-exit based clustering approach). Everything is computed on the validation split. Costs are in
units of lambda, as in the papers' section on the cost structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

ALPHAS = (0.55, 0.6, 0.65, 0.7, 0.8)
BETAS = (0.05, 0.08, 0.11, 0.14, 0.17)
"""DIMEC-DC's grid."""
STEPS = 10
"""DIMEE's thresholds: so many equidistant values from 1/classes to 1."""
MOBILE, EDGE, CLOUD = 0, 1, 2
FOLDS = 5


@dataclass(frozen=True)
class Costs:
    """What a sample costs, in lambda: per layer, per transfer, and the cloud's charge gamma.

    The papers leave gamma open. The default, one lambda for each of a twelve-layer model's layers,
    makes DIMEC-DC's own pools of SST-2 (71.04, 8.71 and 20.24 %) cost 8.04 lambda, 55 % less than
    the whole model on the mobile, which is what its table reports. ``unit`` is lambda on the scale
    of a confidence, left open, too: by default the whole model on the mobile weighs as much as half
    a point, which is the accuracy that the first paper allows to lose.
    """

    mobile: float = 1.5
    edge: float = 1.0
    to_edge: float = 2.5
    to_cloud: float = 3.0
    gamma: float = 12.0
    unit: float = 0.0003

    def whole(self, depth: int) -> float:
        """The whole model on the mobile: what others are compared with."""
        return self.mobile * depth


@dataclass(frozen=True)
class Layers:
    """m of the mobile, n of the edge, l of the cloud."""

    mobile: int
    edge: int
    depth: int

    def tiers(self) -> tuple[int, int, int]:
        """The exits of the three tiers."""
        return self.mobile, self.edge, self.depth


@dataclass(frozen=True)
class Split:
    """Samples as every exit sees them.

    ``probabilities`` float32 [depth, n, classes], ``labels`` int64 [n], ``embeddings`` float32
    [n, dim].
    """

    probabilities: F32
    labels: I64
    embeddings: F32

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: npt.NDArray[np.intp]) -> Split:
        """Some of the samples."""
        return Split(self.probabilities[:, rows], self.labels[rows], self.embeddings[rows])

    @property
    def confidence(self) -> F32:
        """The largest probability at each exit, float32 [depth, n]."""
        top: F32 = self.probabilities.max(-1)
        return top

    @property
    def right(self) -> Bool:
        """Whether each exit is right, bool [depth, n]."""
        return np.asarray(self.probabilities.argmax(-1) == self.labels)

    @property
    def truth(self) -> F32:
        """The true label's probability at each exit, float32 [depth, n]."""
        return np.take_along_axis(self.probabilities, self.labels[None, :, None], 2)[..., 0]


def tier_costs(layers: Layers, costs: Costs) -> F64:
    """What a sample costs at each tier, in lambda, float64 [3]: of DIMEC-DC's reward (4)."""
    return np.array([
        costs.mobile * layers.mobile,
        costs.edge * layers.edge + costs.to_edge,
        costs.to_cloud + costs.gamma,
    ])  # fmt: skip


def cartography(dynamics: F32) -> tuple[F32, F32]:
    """Confidence (1) and variability of the true label's probabilities float32 [epochs, n].

    Printed, (2) is a variance; the thresholds that the paper searches, 0.05 to 0.17, fit a standard
    deviation, which is what data cartography (Swayamdipta et al. 2020) calls variability.
    """
    return dynamics.mean(0), dynamics.std(0)


def dc_pools(mean: F32, spread: F32, alpha: float, beta: float) -> I64:
    """DIMEC-DC's Algorithm 1: the pool of each sample, int64 [n]."""
    easy = (mean >= alpha) & (spread < beta)
    return np.where(easy, MOBILE, np.where(mean >= alpha, EDGE, CLOUD)).astype(np.int64)


def dc_reward(split: Split, pools: I64, layers: Layers, costs: Costs) -> float:
    """The expected reward (4) of samples answered at their pools' tiers."""
    place = np.array(layers.tiers())[pools] - 1
    confidence = split.confidence[place, np.arange(len(split))]
    return float((confidence - costs.unit * tier_costs(layers, costs)[pools]).mean())


def dc_choose(
    split: Split, mean: F32, spread: F32, layers: Layers, costs: Costs
) -> tuple[float, float, I64]:
    """(alpha, beta) of the grid with the highest expected reward, and the pools they make."""
    tried = [(alpha, beta, dc_pools(mean, spread, alpha, beta)) for alpha in ALPHAS
             for beta in BETAS]  # fmt: skip
    return max(tried, key=lambda each: dc_reward(split, each[2], layers, costs))


def first_exit(split: Split, alpha: float, first: int, last: int) -> I64:
    """The first exit from ``first`` to ``last`` as confident as ``alpha``; 0: none is. int64 [n]"""
    confident = split.confidence[first - 1 : last] >= alpha
    return np.where(confident.any(0), confident.argmax(0) + first, 0).astype(np.int64)


def ee_pools(split: Split, alpha: float, layers: Layers) -> I64:
    """DIMEE's Algorithm 1: the pool of each sample by its first confident exit, int64 [n]."""
    exit = first_exit(split, alpha, 1, layers.edge)
    pools = np.where(exit == 0, CLOUD, np.where(exit > layers.mobile, EDGE, MOBILE))
    return pools.astype(np.int64)


def ee_served(
    split: Split, pools: I64, alpha: float, layers: Layers, costs: Costs
) -> tuple[I64, F64]:
    """The exit int64 [n] that answers samples sent to their pools' tiers, and its cost in lambda.

    Within a tier a sample leaves at the first confident exit, and at the tier's last in any case.
    """
    here = first_exit(split, alpha, 1, layers.mobile)
    there = first_exit(split, alpha, layers.mobile + 1, layers.edge)
    exit = np.full(len(split), layers.depth, np.int64)
    cost = np.full(len(split), costs.to_cloud + costs.gamma)
    easy, medium = pools == MOBILE, pools == EDGE
    exit[easy] = np.where(here, here, layers.mobile)[easy]
    exit[medium] = np.where(there, there, layers.edge)[medium]
    cost[easy] = costs.mobile * exit[easy]
    cost[medium] = costs.edge * exit[medium] + costs.to_edge
    return exit, cost


def ee_choose(split: Split, layers: Layers, costs: Costs) -> tuple[float, I64]:
    """The threshold with the highest expected reward (3)-(7), and the pools it makes."""
    classes = split.probabilities.shape[-1]

    def reward(alpha: float) -> float:
        exit, cost = ee_served(split, ee_pools(split, alpha, layers), alpha, layers, costs)
        confidence = split.confidence[exit - 1, np.arange(len(split))]
        return float((confidence - costs.unit * cost).mean())

    best = max(np.linspace(1 / classes, 1, STEPS), key=reward)
    return float(best), ee_pools(split, float(best), layers)


def means(embeddings: F32, pools: I64) -> tuple[F64, I64]:
    """The mean embedding of each pool, float64 [3, dim], and how many it has, int64 [3]."""
    counts = np.bincount(pools, minlength=3)
    out = np.zeros((3, embeddings.shape[1]))
    np.add.at(out, pools, embeddings)
    return out / np.maximum(counts, 1)[:, None], counts.astype(np.int64)


def nearest(embeddings: F32, centres: F64, counts: I64) -> I64:
    """The pool of the nearest mean of each sample, int64 [n]."""
    distances = ((embeddings[:, None] - centres[None]) ** 2).sum(-1)
    return np.asarray(np.where(counts > 0, distances, np.inf).argmin(1), np.int64)


def adaptive(embeddings: F32, centres: F64, counts: I64) -> I64:
    """As ``nearest``, one after the other, each moving its pool's mean by (5)."""
    centres, counts = centres.copy(), counts.copy()
    out = np.empty(len(embeddings), np.int64)
    for row, embedding in enumerate(embeddings):
        out[row] = pool = nearest(embedding[None], centres, counts)[0]
        centres[pool] += (embedding - centres[pool]) / (counts[pool] + 1)
        counts[pool] += 1
    return out


def save(path: Path, centres: F64, counts: I64, scores: dict[str, F32] | None = None) -> None:
    """Write pools, and scores if there are any, for ``device.pools.load``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held: dict[str, npt.NDArray[Any]] = {"means": centres.astype(np.float32), "counts": counts}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **held, **(scores or {}))
