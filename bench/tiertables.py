"""The papers' tables of DIMEC-DC and DIMEE: accuracy and cost of every way to use three tiers.

What each exit says of a sample is computed once, in torch; the tables are arithmetic on that. All
thresholds, pools and scores come from the validation split; samples of the evaluation are only
answered. Cost is in lambda, as its change against the whole model on the mobile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.tierlinks import shuffled, spaced
from common.profile import Profile
from profiles import fitted, tiers
from profiles.fitted import DC, DYNAMIC, FIXED, ROUTES, SCORES, Fitted, Held
from profiles.look import look, look_at
from profiles.pools import I64, Costs, Layers, Split
from profiles.tiers import Served
from profiles.train import photos, sentences
from profiles.train.pooling import CARTOGRAPHY

VALIDATION = ("train.tsv", "dev.tsv")
EVALUATION = "glue-dev.tsv"
POOLS = ("easy", "medium", "hard")
OURS = {FIXED: "Ours-F", DYNAMIC: "Ours-D", SCORES: "scores"}
VARIED = {
    "mobile": "a mobile layer",
    "edge": "an edge layer",
    "to_edge": "mobile to edge",
    "to_cloud": "mobile to cloud",
    "gamma": "the cloud's charge",
}
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""What one cost is multiplied by while the others stay (Fig. 5; Fig. 3)."""
SHARES = ("mobile", "edge", "cloud")


@dataclass(frozen=True)
class Row:
    """A line of the papers' tables: accuracy, and the cost's change against the whole model's.

    `shares`: of the samples, answered by the mobile, the edge, the cloud.
    """

    name: str
    accuracy: float
    cost: float
    shares: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Study:
    """One strategy of a profile: its validation split, fitted, and the samples to evaluate."""

    name: str
    held: Held
    made: Fitted
    test: Split
    seed: int = 0

    def oracle(self, split: Split) -> I64:
        """The tier that the reward (4) would choose, knowing every exit's confidence, int64 [n]."""
        rewards = []
        for tier in range(3):
            served = self.made.serve(split, np.full(len(split), tier))
            sure = split.confidence[served.exit - 1, np.arange(len(split))]
            rewards.append(sure - self.made.costs.unit * served.cost)
        return np.asarray(np.argmax(rewards, axis=0), np.int64)


def studies(
    profile: Profile, data: Sequence[Path], costs: Costs, count: int | None = None
) -> list[Study]:
    """DIMEC-DC and DIMEE of a `profile` of text or pictures, fitted anew under `costs`.

    `data`: the folder with SST-2's tables, or tar files and folders with the photographs' train
    and val, of which evenly spaced `count` are answered (None: all). Raises ValueError without.
    """
    made = _sentences if profile.manifest.task == "classify-text" else _photographs
    split, groups, test = made(profile, data, count)
    with np.load(profile.directory / CARTOGRAPHY) as seen:
        mean, spread = (seen[key].astype(np.float32) for key in ("mean", "spread"))
    held, seed = Held(split, mean, spread, groups), int(profile.made["seed"])
    return [
        Study(name, held, fitted.fit(name, held, _layers(profile, name), costs, seed), test, seed)
        for name in (fitted.DC, fitted.EE)
    ]


def costs_of(profile: Profile) -> Costs:
    """The costs that the profile's pools were made under."""
    return Costs(**profile.made[fitted.DC]["costs"])


def _sentences(
    profile: Profile, data: Sequence[Path], count: int | None
) -> tuple[Split, I64, Split]:
    """The validation split, whose phrases follow their sentence, and the evaluation, in order.

    Adaptive pools depend on the order.
    """
    seed, folder = int(profile.made["seed"]), data[0]
    _, held = sentences.split(sentences.load([folder / name for name in VALIDATION]), seed)
    lines = spaced((folder / EVALUATION).read_text().splitlines()[1:], count)
    rows = [line.rpartition("\t") for line in lines]
    labels = np.array([int(label) for _, _, label in rows])
    test = look(profile.directory, [text.strip() for text, _, _ in rows], labels)
    return look(profile.directory, held.texts, held.labels), held.parents, test


def _photographs(
    profile: Profile, data: Sequence[Path], count: int | None
) -> tuple[Split, I64, Split]:
    """The photographs held out of every training, each a group of its own, and the evaluation.

    That is in random order, since they lie class by class.
    """
    side = profile.manifest.input.height
    known, unseen = (photos.load(data, part, side) for part in ("train", "val"))
    held = known.take(photos.split_off(known)[1])
    few = np.array(shuffled(len(unseen), count))
    split, test = (look_at(profile.directory, each) for each in (held, unseen.take(few)))
    return split, np.arange(len(held)), test


def _layers(profile: Profile, name: str) -> Layers:
    params = profile.manifest.params(name)
    depth = next(m.config["depth"] for m in profile.models.values() if m.kind in ("bert", "vit"))
    return Layers(int(params["mobile"]), int(params["edge"]), int(depth))


def methods(study: Study) -> Iterator[Row]:
    """The papers' main table: the whole model, the baselines, their rules, and ours."""
    held, test, made = study.held, study.test, study.made
    layers, costs = made.layers, made.costs

    def row(name: str, served: Served, sent: I64 | None = None) -> Row:
        return _row(name, test, served, made, sent)

    yield row("whole model on the mobile", tiers.whole(test, layers, costs))
    runs = [
        row("Random", tiers.at_random(test, layers, costs, seed)) for seed in range(tiers.SEEDS)
    ]
    yield replace(
        runs[0],
        accuracy=float(np.mean([run.accuracy for run in runs])),
        cost=float(np.mean([run.cost for run in runs])),
        shares=(1 / 3, 1 / 3, 1 / 3),
    )
    alpha = tiers.early_exit_alpha(held.split, layers, costs)
    yield row("DeeBERT, Early-Exit", tiers.early_exit(test, alpha, layers, costs))
    yield row("AdaEE", tiers.adaee(test, layers, costs))
    alpha = tiers.i_splitee_alpha(held.split, layers, costs)
    yield row("I-SplitEE", tiers.i_splitee(test, alpha, layers, costs))
    for how in ROUTES:
        sent = made.route(test.embeddings, how)
        yield row(OURS[how], made.serve(test, sent), sent)
    sent = study.oracle(test)
    yield row("oracle of confidences", made.serve(test, sent), sent)
    yield row("oracle: cheapest that is right", tiers.cheapest_right(test, layers, costs))


def alone(study: Study) -> Iterator[Row]:
    """Each tier by itself, to its last layer or, for DIMEE, its first confident exit."""
    for tier, name in enumerate(SHARES):
        sent = np.full(len(study.test), tier)
        yield _row(name, study.test, study.made.serve(study.test, sent), study.made, sent)


def routing(study: Study) -> Iterator[tuple[str, float, float]]:
    """(rule, share told right, mean share over pools): of samples held out of the fitting.

    What is right is the strategy's own Algorithm 1, which knows what all exits make of a sample.
    Chance always says the largest pool.
    """
    held, made = study.held, study.made
    true = made.pools
    largest = np.full(len(true), np.bincount(true).argmax())
    yield "chance", float((largest == true).mean()), tiers.balanced(largest, true)
    told = fitted.across(study.name, held, made.layers, made.costs, study.seed)
    for how in ROUTES:
        yield OURS[how], float((told[how] == true).mean()), tiers.balanced(told[how], true)
    sure = study.oracle(held.split)
    yield "oracle of confidences", float((sure == true).mean()), tiers.balanced(sure, true)


def variations(study: Study, factors: Sequence[float]) -> Iterator[tuple[str, float, str, Row]]:
    """(cost, factor, rule, row): fitted anew with one cost changed and the others as they are."""
    base = study.made.costs
    for field in VARIED:
        for factor in factors:
            costs = replace(base, **{field: getattr(base, field) * factor})
            made = fitted.fit(study.name, study.held, study.made.layers, costs, study.seed)
            for how in ROUTES:
                served = made.serve(study.test, made.route(study.test.embeddings, how))
                yield field, factor, OURS[how], _row(OURS[how], study.test, served, made)


def _row(name: str, split: Split, served: Served, made: Fitted, sent: I64 | None = None) -> Row:
    """What `served` comes to under the layers and costs that `made` was fitted for."""
    right = split.right[served.exit - 1, np.arange(len(split))]
    cost = served.cost.mean() / made.costs.whole(made.layers.depth) - 1
    return Row(name, float(right.mean()), float(cost), None if sent is None else _shares(sent))


def _shares(sent: I64) -> tuple[float, float, float]:
    easy, medium, hard = np.bincount(sent, minlength=3) / len(sent)
    return float(easy), float(medium), float(hard)


def main_table(rows: Iterable[Row]) -> str:
    """As a markdown table; the accuracy's change is in points, against the first row."""
    lines = ["| method | accuracy | points | cost | mobile / edge / cloud |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    first: Row | None = None
    for row in rows:
        first = first or row
        shares = "" if row.shares is None else " / ".join(f"{share:.0%}" for share in row.shares)
        lines.append(
            f"| {row.name} | {row.accuracy:.1%} | {100 * (row.accuracy - first.accuracy):+.1f} "
            f"| {row.cost:+.0%} | {shares} |"
        )
    return "\n".join(lines)


def routing_table(study: Study) -> str:
    """As a markdown table."""
    lines = ["| rule | pool told right | mean over pools |", "|---|---:|---:|"]
    lines += [f"| {name} | {share:.1%} | {mean:.1%} |" for name, share, mean in routing(study)]
    return "\n".join(lines)


def variation_table(found: Sequence[tuple[str, float, str, Row]]) -> str:
    """As a markdown table: accuracy and change of cost at each factor."""
    factors = sorted({factor for _, factor, _, _ in found})
    head = " | ".join(f"x {factor:g}" for factor in factors)
    lines = [f"| cost | rule | {head} |", "|---|---|" + "---:|" * len(factors)]
    for field, rule in dict.fromkeys((field, rule) for field, _, rule, _ in found):
        rows = [row for f, _, r, row in found if (f, r) == (field, rule)]
        cells = " | ".join(f"{row.accuracy:.1%}, {row.cost:+.0%}" for row in rows)
        lines.append(f"| {VARIED[field]} | {rule} | {cells} |")
    return "\n".join(lines)


def chosen(study: Study) -> str:
    """What the offline phase chose, in a sentence."""
    made = study.made
    beta = "" if made.beta is None else f", beta {made.beta}"
    pools = ", ".join(
        f"{share:.1%} {name}" for name, share in zip(POOLS, _shares(made.pools), strict=True)
    )
    m, n, depth = made.layers.tiers()
    return (
        f"m {m}, n {n}, l {depth}; alpha {made.alpha:.3f}{beta}; of the validation split {pools}."
    )


def draw_pools(study: Study, path: Path) -> None:
    """The validation split's embeddings on their two principal axes, by pool, with the means."""
    from matplotlib.figure import Figure

    embeddings = study.held.split.embeddings.astype(np.float64)
    centre = embeddings.mean(0)
    axes_ = np.linalg.svd(embeddings - centre, full_matrices=False)[2][:2]
    flat, means = (embeddings - centre) @ axes_.T, (study.made.centres - centre) @ axes_.T
    figure = Figure(figsize=(6, 4.8), layout="constrained")
    axes: Any = figure.add_subplot()
    rows = np.random.default_rng(0).permutation(len(flat))[:600]
    for pool, colour in enumerate(("tab:green", "tab:blue", "tab:red")):
        part = flat[rows[study.made.pools[rows] == pool]]
        axes.plot(*part.T, ".", color=colour, markersize=3, alpha=0.5, label=POOLS[pool])
        if study.made.counts[pool]:
            axes.plot(*means[pool], "X", color=colour, markeredgecolor="black", markersize=10)
    axes.set_title(f"{study.name}: embeddings on two principal axes, pools and their means")
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def section(study: Study, factors: Sequence[float] = FACTORS) -> str:
    """Everything of one strategy, as markdown."""
    title = "DIMEC-DC" if study.name == DC else "DIMEE"
    whole = next(methods(study))
    return "\n\n".join((
        f"### {title}", chosen(study), main_table(methods(study)),
        "Each tier by itself:", main_table((whole, *alone(study))),
        "Pools told from the embedding alone, validation split, five folds:", routing_table(study),
        "One cost changed, the others as they are (accuracy, cost):",
        variation_table(list(variations(study, factors))),
    ))  # fmt: skip
