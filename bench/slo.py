"""A-MOT's SLO-adaptive module by itself: how long solving takes, and what a window gives.

    python -m bench.slo [--profile NAME] [--r1 RATIO] [--quick]

Frames are drawn from the profile's calibration: an interval of confidence by its count, then the
smallest second ratio that makes the answer right by p (or none does). Each goes through the window
that the server has, alone or in batches, and is right if it was given enough. No network, no model:
the share of right answers is that of the table, not of the evaluation set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from common.profile import load
from server.budget import Terms, Window
from server.slo import F64, Table, solve

BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Mean shares of the patches beyond round one's."""


def drawn(table: Table, r1: float, count: int, seed: int) -> tuple[F64, F64]:
    """Confidence [count], and smallest sufficient second ratio [count]; inf: none."""
    random = np.random.default_rng(seed)
    found = table.at(r1)
    places = random.choice(len(found.counts), count, p=found.counts / found.counts.sum())
    low, high = table.edges[places], table.edges[places + 1]
    confidence = low + random.random(count) * (high - low)
    chances = np.vstack((found.p, 1 - found.p.sum(axis=0))).cumsum(axis=0)[:, places]
    needed = np.append(table.ratios, np.inf)[(random.random(count) > chances[:-1]).sum(axis=0)]
    return confidence, needed


def simulated(
    table: Table, terms: Terms, frames: tuple[F64, F64], batch: int
) -> tuple[float, float, float]:
    """Share of right answers, mean share of patches sent, milliseconds of CPU per batch."""
    window = Window(terms, table)
    confidence, needed = frames
    extras: list[int] = []
    began = time.thread_time()
    for start in range(0, len(confidence), batch):
        part = confidence[start : start + batch].tolist()
        n = len(part)
        extras += window.decide(part, [terms.sent] * n, [terms.total] * n)
    spent = (time.thread_time() - began) * 1e3 / -(-len(confidence) // batch)
    enough = np.array(extras) >= np.minimum(np.rint(needed * terms.total), terms.total)
    return (
        float(enough.mean()),
        terms.sent / terms.total + float(np.mean(extras)) / terms.total,
        spent,
    )


def timed(table: Table, r1: float, total: int, runs: int) -> list[float]:
    """Milliseconds of CPU of solving for 1,000 images at random budgets, sorted."""
    random = np.random.default_rng(0)
    found = table.at(r1)
    costs = np.rint(table.ratios * total)
    spent = []
    for _ in range(runs):
        counts = random.multinomial(1000, random.dirichlet(np.ones(len(found.counts))))
        budget = random.uniform(0, table.ratios[-1]) * total * 1000
        began = time.thread_time()
        solve(found.p, counts.astype(np.float64), costs, budget)
        spent.append((time.thread_time() - began) * 1e3)
    return sorted(spent)


def main(argv: Sequence[str] | None = None) -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="signs", help="its name or directory")
    parser.add_argument("--r1", type=float, help="first ratio (default: the profile's)")
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    args = parser.parse_args(argv)
    profile = load(args.profile)
    params = profile.manifest.params("amot")
    if "slo" not in params:
        parser.error(f"profile {profile.name!r} is not calibrated (python -m profiles.calibrate)")
    table, total = Table.from_mapping(params["slo"]), profile.manifest.input.patches
    sent = round((args.r1 or params["r1"]) * total)
    r1 = sent / total
    spent = timed(table, r1, total, 100 if args.quick else 1000)
    print(
        f"solve, {len(table.edges) - 1} intervals x {len(table.ratios)} ratios x 1,000 images: "
        f"median {spent[len(spent) // 2]:.2f} ms, 99 % {spent[int(len(spent) * 0.99)]:.2f} ms"
    )
    frames = drawn(table, r1, 1000 if args.quick else 10_000, seed=0)
    print(f"\nr1 {r1:.0%}, threshold {params['threshold']}; right / sent, one frame at a time\n")
    objectives = ("weighted", "printed", "fixed")
    print(f"| budget | {' | '.join(objectives)} | weighted, batches of 32 | ms a frame |")
    print("|---|" + "---:|" * 5)
    for more in BUDGETS:
        cells = []
        for objective, batch in (*((o, 1) for o in objectives), ("weighted", 32)):
            terms = Terms(
                sent, total, params["threshold"], params["r2"], objective, (r1 + more) * total
            )
            right, share, ms = simulated(table, terms, frames, batch)
            cells.append(f"{right:.1%} / {share:.1%}")
            if (objective, batch) == ("weighted", 1):
                alone = ms
        print(f"| {r1 + more:.0%} | {' | '.join(cells)} | {alone:.2f} |")


if __name__ == "__main__":
    main()
