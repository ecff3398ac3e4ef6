"""The offline phase of DIMEC-DC and DIMEE as a stage: pools and scores into a published profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from profiles import fitted, pools
from profiles.amend import amend
from profiles.fitted import DC, DYNAMIC, EE, FIXED, SCORES, Fitted, Held
from profiles.pools import F32, I64, Costs, Layers, Split

NAMES = (DC, EE)
CARTOGRAPHY = "cartography.npz"
"""In a profile's directory: mean and spread of the validation split, for the tables."""


def stage(
    directory: Path, out: Path, split: Split, groups: I64, truth: Mapping[str, F32],
    layers: Mapping[str, Layers], costs: Costs, seed: int,
) -> None:  # fmt: skip
    """Fit both strategies to the validation ``split`` and add them to the profile ``directory``.

    ``truth`` float32 [epochs, n] by strategy: the true label's probability behind the mobile's last
    layer after every epoch.
    """
    mean, spread = pools.cartography(truth[DC])
    seen = {"mean": mean.astype(np.float16), "spread": spread.astype(np.float16)}
    np.savez(directory / CARTOGRAPHY, allow_pickle=False, **seen)
    held = Held(split, mean, spread, groups)
    for name, each in layers.items():
        made = fitted.fit(name, held, each, costs, seed)
        told = fitted.across(name, held, each, costs, seed)
        earned = {how: _earned(made, split, sent) for how, sent in told.items()}
        place = f"device/{name}.npz"
        pools.save(out / place, made.centres, made.counts, made.scores)
        params: dict[str, Any] = {
            "tiers": place,
            "route": SCORES if earned[SCORES] > earned[FIXED] else "nearest",
            "pools": "adaptive" if earned[DYNAMIC] > earned[FIXED] else "fixed",
        }
        if made.beta is None:
            params["alpha"] = round(made.alpha, 4)
        shares = np.bincount(made.pools, minlength=3) / len(made.pools)
        record = {
            "alpha": round(made.alpha, 4), "beta": made.beta, "costs": asdict(costs),
            "pools": [round(float(share), 4) for share in shares],
            "reward_by_route": {how: round(value, 4) for how, value in earned.items()},
        }  # fmt: skip
        print(f"{name}: {record}, serves by {params['route']} and {params['pools']} pools")
        amend(directory, strategies={name: params}, files={place: out / place},
              made={name: record})  # fmt: skip


def _earned(made: Fitted, split: Split, sent: I64) -> float:
    """The mean reward of samples ``sent`` to tiers, by the probability of being right."""
    served = made.serve(split, sent)
    truth = split.truth[served.exit - 1, np.arange(len(split))]
    return float((truth - made.costs.unit * served.cost).mean())
