"""Who answers each sample, and for how much: the papers' strategies, their baselines, and ours.

Each takes a split and says by which exit every sample is answered and what that costs in lambda.
The bandits see samples one after the other, without labels, as their papers have them. Where a
baseline sends a hidden state on, the cloud's charge is for the layers that are left; the papers'
strategies, which send the sample, pay the whole charge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from profiles import pools
from profiles.pools import CLOUD, F64, I64, Costs, Layers, Split, first_exit, tier_costs

ARMS = 10
"""Thresholds that AdaEE chooses from, equidistant from 1/classes to 1."""
CURIOSITY = 1.0
"""Weight of the confidence bound in UCB1."""
SEEDS = 20
"""Over how many seeds Random's figures are means."""


@dataclass(frozen=True)
class Served:
    """``exit`` int64 [n] that answers each sample, and its ``cost`` float64 [n] in lambda."""

    exit: I64
    cost: F64


def whole(split: Split, layers: Layers, costs: Costs) -> Served:
    """The whole model on the mobile."""
    n = len(split)
    return Served(np.full(n, layers.depth), np.full(n, costs.whole(layers.depth), np.float64))


def by_tier(split: Split, tiers: I64, layers: Layers, costs: Costs) -> Served:
    """Each sample at the last exit of its tier: DIMEC-DC."""
    return Served(np.array(layers.tiers())[tiers], tier_costs(layers, costs)[tiers])


def by_tier_early(split: Split, tiers: I64, alpha: float, layers: Layers, costs: Costs) -> Served:
    """Each sample at the first confident exit of its tier: DIMEE."""
    return Served(*pools.ee_served(split, tiers, alpha, layers, costs))


def at_random(split: Split, layers: Layers, costs: Costs, seed: int) -> Served:
    """Random: each tier as likely as the others."""
    tiers = np.random.default_rng([seed, 6]).integers(0, 3, len(split))
    return by_tier(split, tiers, layers, costs)


def early_exit(split: Split, alpha: float, layers: Layers, costs: Costs) -> Served:
    """DeeBERT, Early-Exit: the whole model on the mobile, left at the first confident exit."""
    exit = first_exit(split, alpha, 1, layers.depth)
    exit = np.where(exit, exit, layers.depth)
    return Served(exit, np.asarray(costs.mobile * exit, np.float64))


def _handed_over(after: int, layers: Layers, costs: Costs) -> float:
    """A sample whose first ``after`` layers ran on the mobile and the others in the cloud."""
    left = (layers.depth - after) / layers.depth
    return costs.mobile * after + costs.to_cloud + costs.gamma * left


def adaee(split: Split, layers: Layers, costs: Costs) -> Served:
    """AdaEE: m layers on the mobile, the cloud behind them, the threshold chosen by a bandit."""
    arms = np.linspace(1 / split.probabilities.shape[-1], 1, ARMS)
    here, over = costs.mobile * layers.mobile, _handed_over(layers.mobile, layers, costs)
    confidence = split.confidence[layers.mobile - 1]

    def play(sample: int, arm: int) -> tuple[int, float]:
        stays = confidence[sample] >= arms[arm]
        return (layers.mobile, here) if stays else (layers.depth, over)

    return _ucb(split, ARMS, play, costs)


def i_splitee(split: Split, alpha: float, layers: Layers, costs: Costs) -> Served:
    """I-SplitEE: a bandit chooses the layer to split at; not confident there, on to the cloud."""
    confidence = split.confidence

    def play(sample: int, arm: int) -> tuple[int, float]:
        layer = arm + 1
        if layer == layers.depth or confidence[arm, sample] >= alpha:
            return layer, costs.mobile * layer
        return layers.depth, _handed_over(layer, layers, costs)

    return _ucb(split, layers.depth, play, costs)


def i_splitee_alpha(split: Split, layers: Layers, costs: Costs) -> float:
    """I-SplitEE's threshold: of DIMEE's, the one that earns most on ``split``."""

    def reward(alpha: float) -> float:
        served = i_splitee(split, alpha, layers, costs)
        return float((_confidence(split, served) - costs.unit * served.cost).mean())

    return float(max(np.linspace(1 / split.probabilities.shape[-1], 1, pools.STEPS), key=reward))


def early_exit_alpha(split: Split, layers: Layers, costs: Costs) -> float:
    """Early-Exit's threshold: of DIMEE's, the one that earns most on ``split``."""

    def reward(alpha: float) -> float:
        served = early_exit(split, alpha, layers, costs)
        return float((_confidence(split, served) - costs.unit * served.cost).mean())

    return float(max(np.linspace(1 / split.probabilities.shape[-1], 1, pools.STEPS), key=reward))


def _confidence(split: Split, served: Served) -> F64:
    return split.confidence[served.exit - 1, np.arange(len(split))].astype(np.float64)


def _ucb(
    split: Split, arms: int, play: Callable[[int, int], tuple[int, float]], costs: Costs
) -> Served:
    """UCB1 (Auer et al. 2002) over ``arms``; ``play`` gives the exit and the cost of a sample.

    The reward is the exit's confidence less the cost, as in (4).
    """
    counts, sums, confidence = np.zeros(arms), np.zeros(arms), split.confidence
    exits, cost = np.empty(len(split), np.int64), np.empty(len(split))
    for sample in range(len(split)):
        if sample < arms:
            arm = sample
        else:
            arm = int((sums / counts + CURIOSITY * np.sqrt(np.log(sample) / counts)).argmax())
        exits[sample], cost[sample] = play(sample, arm)
        counts[arm] += 1
        sums[arm] += confidence[exits[sample] - 1, sample] - costs.unit * cost[sample]
    return Served(exits, cost)


def cheapest_right(split: Split, layers: Layers, costs: Costs) -> Served:
    """The oracle: the cheapest tier that is right, and the cheapest where none is."""
    order = np.argsort(tier_costs(layers, costs), kind="stable")
    tiers = np.full(len(split), order[0])
    found = np.zeros(len(split), bool)
    for tier in order:
        right = split.right[layers.tiers()[tier] - 1] & ~found
        tiers[right] = tier
        found |= right
    return by_tier(split, tiers, layers, costs)


def balanced(told: I64, true: I64) -> float:
    """The mean over pools of the share told right: 1/3 by chance, however large the pools are."""
    kinds = [kind for kind in range(CLOUD + 1) if (true == kind).any()]
    return float(np.mean([(told[true == kind] == kind).mean() for kind in kinds]))
