"""The report of a calibration, in the kind of the paper's Fig. 13, 15 and 16: tables and plots.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, sections 5.3 to 5.5. Every accuracy at a budget is `sweep.crossed`:
settings chosen on one half of the frames, scored on the other, both ways round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from profiles import sweep
from profiles.sweep import Outcomes, Scored

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the comparison of strategies (Fig. 13)."""
FEW = (0.2, 0.3, 0.4, 0.6, 0.8)
"""Of the accuracy over the first ratio (Fig. 15)."""
THRESHOLD = 0.8
"""The paper's, in Fig. 16."""
METHODS: dict[str, sweep.Method] = {
    "A-MOT-O": sweep.one_round,
    "MOT": sweep.mot,
    "A-MOT": sweep.amot,
    "A-MOT, (3) as printed": sweep.amot_as_printed,
}

Curve = dict[float, Scored]
"""What a method gives, by budget; those without a setting are left out."""


def strategies(outcomes: Outcomes) -> dict[str, Curve]:
    """Fig. 13: every method at every budget."""
    return {
        name: _curve({budget: sweep.crossed(outcomes, budget, method) for budget in BUDGETS})
        for name, method in METHODS.items()
    }


def first_ratios(outcomes: Outcomes) -> dict[float, Curve]:
    """Fig. 15: by total budget, the best of MOT at every first ratio that it allows."""

    def at(r1: float) -> sweep.Method:
        def method(fit: Outcomes, budget: float) -> sweep.Setting | None:
            return sweep.best(fit, sweep.uniform(fit, budget, [r1]), budget)

        return method

    return {
        budget: _curve({
            r1: sweep.crossed(outcomes, budget, at(r1)) if r1 <= budget else None
            for r1 in outcomes.firsts
        })
        for budget in FEW
    }  # fmt: skip


def confidences(outcomes: Outcomes, r1: float) -> list[tuple[float, float]]:
    """Fig. 16: per interval, the share of all frames in it, and the share of those right at once.

    An interval without frames has (0, nan).
    """
    first = outcomes.firsts.index(r1)
    places = sweep.intervals(outcomes.confidence[:, first])
    inside = [outcomes.right[places == place, first, 0] for place in range(sweep.INTERVALS)]
    return [
        (len(right) / len(outcomes), float(right.mean()) if len(right) else float("nan"))
        for right in inside
    ]


def report(
    title: str, command: str, outcomes: Outcomes, rows: Sequence[Mapping[str, Any]], own: float
) -> str:
    """The Markdown: `rows` are the profile's settings by budget, that of `own` is its default."""
    default = next(row for row in rows if row["budget"] == own)
    r1 = default["r1"]
    count = len(outcomes)
    error = 0.5 / count**0.5
    parts = [
        f"## {title}\n",
        f"    {command}\n",
        f"Settings are chosen on one half of the {count} frames and scored on the other, both ways "
        f"round; one standard error of an accuracy is at most {error:.1%}. A budget is a mean "
        "share of the patches; the share in brackets is what was sent on the frames scored.\n",
        "### Settings by budget\n",
        "The profile's settings, chosen on all frames; the accuracy is that of settings chosen "
        "on the other half.\n",
        settings_table(rows),
        f"{served(outcomes, default)}\n",
        "### One round, two rounds, and the table (Fig. 13)\n",
        strategies_table(strategies(outcomes)),
        "### The first ratio at a total budget (Fig. 15)\n",
        "MOT with the best second ratio and threshold for each first ratio.\n",
        first_ratios_table(first_ratios(outcomes), outcomes.firsts),
        f"### Confidence after round one of {r1:.0%} (Fig. 16)\n",
        confidence_table(confidences(outcomes, r1)),
        f"{ending(outcomes, r1)}\n",
    ]
    return "\n".join(parts)


def ending(outcomes: Outcomes, r1: float) -> str:
    """How many frames end in round one at the paper's threshold, and how many of them rightly."""
    first = outcomes.firsts.index(r1)
    sure = outcomes.confidence[:, first] >= THRESHOLD
    if not sure.any():
        return f"At a threshold of {THRESHOLD:g} no frame ends in round one."
    right = outcomes.right[sure, first, 0].mean()
    return (
        f"At a threshold of {THRESHOLD:g}, {sure.mean():.0%} of the frames end in round one, "
        f"{right:.0%} of them rightly."
    )


def served(outcomes: Outcomes, row: Mapping[str, Any]) -> str:
    """What the default of `row` gives where the server solves for r1 + r2 on average."""
    budget = row["r1"] + row["r2"]

    def solved(fit: Outcomes, budget: float) -> sweep.Setting:
        return sweep.adaptive(fit, budget, [row["r1"]], [row["threshold"]])[0]

    scored = sweep.crossed(outcomes, budget, solved)
    assert scored is not None
    return (
        f"The default is that of {row['budget']:.0%}. With it the table may spend r1 + r2 = "
        f"{budget:.0%} on average, also what sure frames leave: {scored.accuracy:.1%} for "
        f"{scored.share:.1%} of the patches."
    )


def settings_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `strategies.amot.budgets`."""
    return _table(
        ("budget", "r1", "r2", "threshold", "top-1"),
        (
            (f"{row['budget']:.0%}", f"{row['r1']:.0%}",
             *((f"{row['r2']:.0%}", f"{row['threshold']:g}") if row["r2"] else ("one round", "-")),
             f"{row['accuracy']:.1%}")
            for row in rows
        ),
    )  # fmt: skip


def strategies_table(found: Mapping[str, Curve]) -> str:
    """Fig. 13 as a table, with the difference that the table makes."""

    def cell(curve: Curve, budget: float) -> str:
        if budget not in curve:
            return "-"
        return f"{curve[budget].accuracy:.1%} ({curve[budget].share:.0%})"

    return _table(
        ("budget", *found, "A-MOT less MOT"),
        (
            (f"{budget:.0%}", *(cell(curve, budget) for curve in found.values()),
             _difference(found["A-MOT"].get(budget), found["MOT"].get(budget)))
            for budget in BUDGETS
        ),
    )  # fmt: skip


def first_ratios_table(found: Mapping[float, Curve], firsts: Sequence[float]) -> str:
    """Fig. 15 as a table."""
    return _table(
        ("r1", *(f"budget {budget:.0%}" for budget in found)),
        (
            (f"{r1:.0%}", *(f"{c[r1].accuracy:.1%}" if r1 in c else "-" for c in found.values()))
            for r1 in firsts
            if any(r1 in curve for curve in found.values())
        ),
    )


def confidence_table(found: Sequence[tuple[float, float]]) -> str:
    """Fig. 16 as a table."""
    return _table(
        ("confidence", "frames", "right in round one"),
        (
            (f"{low:.1f} to {high:.1f}", f"{share:.1%}", f"{right:.0%}" if share else "-")
            for low, high, (share, right) in zip(
                sweep.EDGES[:-1], sweep.EDGES[1:], found, strict=True
            )
        ),
    )


def plots(outcomes: Outcomes, name: str, r1: float, folder: Path) -> None:
    """Write Fig. 13, 15 and 16 of profile `name` to `folder`, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # So that the same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = name
    panels: list[tuple[str, str, Mapping[str, Curve]]] = [
        ("strategies", "budget: mean share of the patches, %", strategies(outcomes)),
        (
            "first-ratio",
            "first ratio, %",
            {f"budget {budget:.0%}": c for budget, c in first_ratios(outcomes).items()},
        ),
    ]
    for stem, label, curves in panels:
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for line, curve in curves.items():
            accuracy = [100 * scored.accuracy for scored in curve.values()]
            axes.plot([100 * x for x in curve], accuracy, "o-", markersize=4, label=line)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1, %")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(folder / f"{name}-{stem}.svg", metadata={"Date": None})
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    shares, right = (100 * np.array(each) for each in zip(*confidences(outcomes, r1), strict=True))
    axes.bar(np.array(sweep.EDGES[:-1]) + 0.05, shares, 0.09, label="of all frames, in it")
    axes.plot(np.array(sweep.EDGES[:-1]) + 0.05, right, "o-k", label="of those in it, right")
    axes.set_xlabel(f"confidence after round one of {r1:.0%} of the patches")
    axes.set_ylabel("share, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / f"{name}-confidence.svg", metadata={"Date": None})


def _curve(found: Mapping[float, Scored | None]) -> Curve:
    return {x: scored for x, scored in found.items() if scored is not None}


def _difference(one: Scored | None, other: Scored | None) -> str:
    """The difference in accuracy and its standard error, frame by frame."""
    if one is None or other is None:
        return "-"
    each = one.right.astype(float) - other.right
    return f"{100 * each.mean():+.1f} ± {100 * each.std() / len(each) ** 0.5:.1f} points"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
