"""DIMEC-DC or DIMEE fitted to a validation split under given costs, and what it does with others.

The same fitting makes the profile, the rows of the tables, and every point of the cost variations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profiles import pools, scores, tiers
from profiles.pools import F32, F64, FOLDS, I64, Costs, Layers, Split
from profiles.tiers import Served

DC, EE = "dimec", "dimee"
FIXED, DYNAMIC, SCORES = "fixed", "dynamic", "scores"
ROUTES = (FIXED, DYNAMIC, SCORES)
"""By the nearest mean; the same with means that move; by our scores."""


@dataclass(frozen=True)
class Held:
    """The validation split, with DIMEC-DC's ``mean`` and ``spread`` of each sample's dynamics.

    ``groups`` int64 [n]: samples of one group are never on both sides of a fold.
    """

    split: Split
    mean: F32
    spread: F32
    groups: I64

    def part(self, rows: npt.NDArray[np.intp]) -> Held:
        """Some of the samples."""
        return Held(self.split.part(rows), self.mean[rows], self.spread[rows], self.groups[rows])


@dataclass(frozen=True)
class Fitted:
    """What the offline phase chose. ``pools`` int64 [n] are the validation split's own."""

    name: str
    layers: Layers
    costs: Costs
    alpha: float
    beta: float | None
    pools: I64
    centres: F64
    counts: I64
    scores: dict[str, F32]

    def true_pools(self, held: Held) -> I64:
        """The pools that Algorithm 1 puts samples in, knowing what all exits make of them."""
        if self.beta is None:
            return pools.ee_pools(held.split, self.alpha, self.layers)
        return pools.dc_pools(held.mean, held.spread, self.alpha, self.beta)

    def route(self, embeddings: F32, how: str) -> I64:
        """The tier of each sample by its embedding alone, int64 [n]."""
        if how == SCORES:
            return scores.route(self.scores, embeddings)
        chosen = pools.adaptive if how == DYNAMIC else pools.nearest
        return chosen(embeddings, self.centres, self.counts)

    def serve(self, split: Split, sent: I64) -> Served:
        """Who answers samples ``sent`` to tiers."""
        if self.beta is None:
            return tiers.by_tier_early(split, sent, self.alpha, self.layers, self.costs)
        return tiers.by_tier(split, sent, self.layers, self.costs)


def fit(name: str, held: Held, layers: Layers, costs: Costs, seed: int = 0) -> Fitted:
    """The offline phase of the strategy ``name``."""
    split, beta = held.split, None
    if name == DC:
        alpha, beta, made = pools.dc_choose(split, held.mean, held.spread, layers, costs)
    else:
        alpha, made = pools.ee_choose(split, layers, costs)
    centres, counts = pools.means(split.embeddings, made)
    learned = scores.train(split.embeddings, made, seed)
    return Fitted(name, layers, costs, alpha, beta, made, centres, counts, learned)


def across(name: str, held: Held, layers: Layers, costs: Costs, seed: int = 0) -> dict[str, I64]:
    """The tier of each sample of ``held`` by each of ROUTES, fitted to the other folds alone."""
    groups = np.unique(held.groups, return_inverse=True)[1]
    fold = np.random.default_rng([seed, 7]).permutation(int(groups.max()) + 1)[groups] % FOLDS
    out = {how: np.empty(len(held.split), np.int64) for how in ROUTES}
    for each in range(FOLDS):
        there, here = np.flatnonzero(fold != each), np.flatnonzero(fold == each)
        fitted = fit(name, held.part(there), layers, costs, seed)
        for how, told in out.items():
            told[here] = fitted.route(held.split.embeddings[here], how)
    return out
