"""The offline phase by hand: pools, rewards, baselines, on samples whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from device import pools as served_pools
from profiles import fitted, pools, scores, tiers
from profiles.fitted import DC, DYNAMIC, EE, FIXED, ROUTES, SCORES, Held
from profiles.pools import CLOUD, EDGE, MOBILE, Costs, Layers, Split

LAYERS = Layers(2, 3, 4)
COSTS = Costs(gamma=4.0, unit=0.01)


def split(confidence: list[list[float]], right: list[list[int]] | None = None) -> Split:
    """Samples of class 1 by their confidence at each exit, [exits][n]; ``right`` 0: in class 0."""
    top = np.array(confidence, np.float32)
    mark = np.ones_like(top) if right is None else np.array(right)
    one = np.where(mark == 1, top, 1 - top)
    n = top.shape[1]
    embeddings = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return Split(np.stack([1 - one, one], -1), np.ones(n, np.int64), embeddings)


FOUR = split(
    [[0.95, 0.60, 0.55, 0.60], [0.96, 0.70, 0.60, 0.92], [0.97, 0.95, 0.65, 0.93],
     [0.98, 0.97, 0.90, 0.94]]
)  # fmt: skip


def test_the_charge_reproduces_the_paper_s_cost_of_its_own_pools() -> None:
    shares = np.array([0.7104, 0.0871, 0.2024])
    costs, layers = Costs(), Layers(4, 6, 12)
    cost = shares @ pools.tier_costs(layers, costs)
    assert cost / costs.whole(12) - 1 == pytest.approx(-0.55, abs=0.005)


def test_cartography_is_a_mean_and_a_deviation() -> None:
    mean, spread = pools.cartography(np.array([[0.2, 0.9], [0.6, 0.9]], np.float32))
    np.testing.assert_allclose(mean, [0.4, 0.9], atol=1e-6)
    np.testing.assert_allclose(spread, [0.2, 0.0], atol=1e-6)


def test_algorithm_one_of_the_first_paper() -> None:
    mean, spread = np.array([0.9, 0.9, 0.5, 0.5], np.float32), np.array([0.01, 0.2, 0.01, 0.2])
    made = pools.dc_pools(mean, spread.astype(np.float32), 0.6, 0.1)
    assert list(made) == [MOBILE, EDGE, CLOUD, CLOUD]


def test_algorithm_one_of_the_second_paper() -> None:
    assert list(pools.ee_pools(FOUR, 0.9, LAYERS)) == [MOBILE, EDGE, CLOUD, MOBILE]
    assert list(pools.first_exit(FOUR, 0.9, 1, 4)) == [1, 3, 4, 2]
    assert list(pools.ee_pools(FOUR, 0.99, LAYERS)) == [CLOUD] * 4


def test_costs_of_who_answers() -> None:
    sent = np.array([MOBILE, EDGE, CLOUD, MOBILE])
    exit, cost = pools.ee_served(FOUR, sent, 0.9, LAYERS, COSTS)
    assert list(exit) == [1, 3, 4, 2]
    np.testing.assert_allclose(cost, [1.5, 3 + 2.5, 3 + 4, 3.0])
    served = tiers.by_tier(FOUR, sent, LAYERS, COSTS)
    assert list(served.exit) == [2, 3, 4, 2]
    np.testing.assert_allclose(served.cost, [3, 5.5, 7, 3])


def test_not_confident_a_tier_s_last_exit_answers() -> None:
    exit, cost = pools.ee_served(FOUR, np.array([0, 0, 0, 1]), 0.999, LAYERS, COSTS)
    assert list(exit) == [2, 2, 2, 3]
    np.testing.assert_allclose(cost, [3, 3, 3, 5.5])


def test_the_reward_is_the_confidence_less_the_cost() -> None:
    sent = np.array([MOBILE, EDGE, CLOUD, CLOUD])
    by_hand = np.mean([0.96 - 0.03, 0.95 - 0.055, 0.90 - 0.07, 0.94 - 0.07])
    assert pools.dc_reward(FOUR, sent, LAYERS, COSTS) == pytest.approx(by_hand, abs=1e-6)


def test_the_choice_earns_most() -> None:
    mean, spread = np.array([0.9, 0.58, 0.5, 0.9]), np.array([0.01, 0.2, 0.2, 0.1])
    mean, spread = mean.astype(np.float32), spread.astype(np.float32)
    alpha, beta, made = pools.dc_choose(FOUR, mean, spread, LAYERS, COSTS)
    best = pools.dc_reward(FOUR, made, LAYERS, COSTS)
    for a in pools.ALPHAS:
        for b in pools.BETAS:
            other = pools.dc_pools(mean, spread, a, b)
            assert pools.dc_reward(FOUR, other, LAYERS, COSTS) <= best
    assert np.array_equal(made, pools.dc_pools(mean, spread, alpha, beta))


@pytest.mark.parametrize(("unit", "pool"), [(0.0, CLOUD), (1.0, MOBILE)])
def test_dear_layers_keep_samples_here_and_free_ones_send_them_on(unit: float, pool: int) -> None:
    doubtful = split([[0.5] * 3, [0.55] * 3, [0.6] * 3, [0.99] * 3])
    costs = Costs(gamma=20.0, unit=unit)
    alpha, made = pools.ee_choose(doubtful, LAYERS, costs)
    assert set(made) == {pool}
    assert 0.5 <= alpha <= 1


def test_means_and_the_nearest_one() -> None:
    x = np.array([[0, 0], [2, 0], [10, 0], [5, 5]], np.float32)
    centres, counts = pools.means(x, np.array([MOBILE, MOBILE, CLOUD, CLOUD]))
    np.testing.assert_allclose(centres[[0, 2]], [[1, 0], [7.5, 2.5]])
    assert list(counts) == [2, 0, 2]
    told = pools.nearest(np.array([[2, 1], [9, 1], [4, 0]], np.float32), centres, counts)
    assert list(told) == [MOBILE, CLOUD, MOBILE]  # never the empty pool in the middle


def test_adaptive_means_are_those_of_the_device() -> None:
    rng = np.random.default_rng(0)
    centres, counts = rng.normal(size=(3, 4)), np.array([3, 4, 5])
    x = rng.normal(size=(50, 4)).astype(np.float32)
    theirs = served_pools.Pools(centres.copy(), counts.copy())
    expected = []
    for each in x:
        pool = theirs.nearest(each)
        theirs.add(each, pool)
        expected.append(pool)
    assert list(pools.adaptive(x, centres, counts)) == expected
    assert counts.sum() == 12  # the profile's own are left alone


# Baselines.


def test_the_whole_model_and_early_exit() -> None:
    whole = tiers.whole(FOUR, LAYERS, COSTS)
    assert set(whole.exit) == {4}
    assert set(whole.cost) == {6.0}
    early = tiers.early_exit(FOUR, 0.9, LAYERS, COSTS)
    assert list(early.exit) == [1, 3, 4, 2]
    np.testing.assert_allclose(early.cost, [1.5, 4.5, 6, 3])


def many(n: int, doubt: float, seed: int = 0) -> Split:
    """Samples of which a share ``doubt`` is confident at the last exit alone."""
    doubtful = np.random.default_rng(seed).random(n) < doubt
    return split([list(np.where(doubtful, low, 0.99)) for low in (0.5, 0.52, 0.6, 0.99)])


def test_the_bandits_learn_what_pays() -> None:
    free = Costs(mobile=0.0, to_cloud=0.0, gamma=0.0, unit=1.0)
    last = tiers.i_splitee(many(3000, 0.5), 0.9, LAYERS, free).exit[-500:]
    assert tiers.adaee(many(3000, 1.0), LAYERS, free).exit[-500:].mean() > 3.5
    assert (last == 4).mean() > 0.4
    dear = Costs(to_cloud=50.0, unit=0.02)
    assert (tiers.adaee(many(3000, 1.0), LAYERS, dear).exit[-500:] == 2).mean() > 0.8
    assert tiers.i_splitee(many(3000, 0.0), 0.9, LAYERS, dear).exit[-500:].mean() < 2


def test_a_baseline_that_sends_a_hidden_state_pays_for_the_layers_left() -> None:
    served = tiers.i_splitee(many(4, 1.0), 0.9, LAYERS, COSTS)  # each arm once
    np.testing.assert_allclose(
        served.cost, [1.5 + 3 + 4 * 3 / 4, 3 + 3 + 4 * 2 / 4, 4.5 + 3 + 4 * 1 / 4, 6.0]
    )


def test_the_oracle_takes_the_cheapest_that_is_right() -> None:
    right = split([[0.9] * 4] * 4, [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]])
    served = tiers.cheapest_right(right, LAYERS, COSTS)
    assert list(served.exit) == [2, 3, 4, 2]


def test_balanced_accuracy_is_a_third_for_whoever_says_one_thing() -> None:
    true = np.array([0] * 90 + [1] * 5 + [2] * 5)
    assert tiers.balanced(np.zeros(100, np.int64), true) == pytest.approx(1 / 3)
    assert tiers.balanced(true, true) == 1


# Scores, and the whole phase.


def held(n: int = 1000) -> Held:
    """Samples that are hard near the border between classes: no mean can tell, a score can."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    easy = np.abs(x[:, 0]) > 0.7
    truth = [np.where(easy, 0.98, 0.5), np.where(easy, 0.98, 0.52), np.where(easy, 0.98, 0.6),
             np.full(n, 0.99)]  # fmt: skip
    made = split([list(each) for each in truth])
    sample = Split(made.probabilities, made.labels, x)
    spread = np.full(n, 0.01, np.float32)
    return Held(sample, sample.truth[1].copy(), spread, np.arange(n))


@pytest.mark.parametrize("name", [DC, EE])
def test_scores_tell_what_means_cannot(name: str) -> None:
    costs = Costs(to_cloud=2.0, gamma=6.0, unit=0.03)
    data = held()
    made = fitted.fit(name, data, LAYERS, costs)
    told = fitted.across(name, data, LAYERS, costs)
    true = made.true_pools(data)
    assert set(told) == set(ROUTES)
    assert tiers.balanced(told[SCORES], np.where(true == MOBILE, MOBILE, CLOUD)) > 0.75
    assert tiers.balanced(told[FIXED], np.where(true == MOBILE, MOBILE, CLOUD)) < 0.65
    assert (told[DYNAMIC] == made.route(data.split.embeddings, DYNAMIC)).mean() > 0.4


def test_scores_on_the_device_are_those_that_were_trained() -> None:
    data = held(200).split
    weights = scores.train(data.embeddings, np.digitize(data.embeddings[:, 1], (-0.4, 0.4)))
    served = served_pools.Scores(**weights)
    told = scores.route(weights, data.embeddings)
    assert [served.best(each) for each in data.embeddings] == list(told)
    assert set(told) == {MOBILE, EDGE, CLOUD}


def test_groups_never_lie_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = held(300)
    groups = np.arange(300) // 10
    seen: list[set[int]] = []
    real = fitted.fit

    def spy(name: str, part: Held, *rest: object) -> fitted.Fitted:
        seen.append(set(part.groups.tolist()))
        return real(name, part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fitted, "fit", spy)
    fitted.across(EE, Held(data.split, data.mean, data.spread, groups), LAYERS, COSTS)
    assert len(seen) == pools.FOLDS
    for other in range(30):
        assert sum(other not in each for each in seen) == 1
