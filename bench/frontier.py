"""What `bench amot` runs: A-MOT and all it is compared with, at budgets and coded.

The settings at each budget are those that the profile holds, chosen on calibration frames by
`profiles.calibrate` (A-MOT) and `profiles.baselines` (JPEG, WebP, SDT, ISR): none is chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from common.errors import OffboardError
from common.profile import Manifest, Profile
from profiles import graph

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Shares of the raw frame's bytes (the paper's Fig. 11)."""
METHODS = (
    *(
        "A-MOT direct",
        "MOT direct",
        "A-MOT",
        "MOT",
        "A-MOT-O",
        "Non-R",
        "SDT",
        "ISR",
        "PO",
        "DF",
        "MBC",
    ),
    *("JPEG", "WebP", "full frame", "local"),
)
"""In the order of tables and legends."""
ITEM = ("budget", "bytes", "cost", "accuracy")
"""What a row of the profile's tables says beside a setting."""
RAW, CODED = "raw", "coded"


@dataclass(frozen=True)
class Config:
    """One row to measure. `coding`: raw patches or pixels, or coded ones; `budget`: see BUDGETS."""

    method: str
    strategy: str
    settings: Mapping[str, Any]
    coding: str
    budget: float | None = None

    @property
    def name(self) -> str:
        """The settings in words."""
        return " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                        for key, value in self.settings.items()) or "profile's own"  # fmt: skip

    def matches(self, pattern: str) -> bool:
        """Whether `pattern` is found in "METHOD CODING BUDGET SETTINGS"."""
        budget = "" if self.budget is None else f"{self.budget:.0%}"
        return re.search(pattern, f"{self.method} {self.coding} {budget} {self.name}") is not None


def configurations(manifest: Manifest, quick: bool = False) -> list[Config]:
    """Every row, the full frame first. `quick`: one budget, and one coded setting of each method.

    Raises OffboardError if the profile lacks the tables of a strategy that it offers.
    """
    budgets = (0.4,) if quick else BUDGETS
    made = [Config("full frame", "raw", {"codec": "zstd"}, CODED)]
    made += _amot(manifest, budgets, quick)
    for strategy, method in (("sdt", "SDT"), ("isr", "ISR")):
        if strategy not in manifest.strategies:
            continue
        for budget in budgets:
            row = within(table(manifest, strategy, "budgets"), budget)
            if row is not None:
                settings = {**setting(row), "codec": "raw"}
                made.append(Config(method, strategy, settings, RAW, budget))
        coded = table(manifest, strategy, "coded")
        made += [Config(method, strategy, setting(row), CODED) for row in few(coded, quick)]
    for form, method in (("jpeg", "JPEG"), ("webp", "WebP")):
        rows = [row for row in table(manifest, "jpeg", "coded") if row["format"] == form]
        made += [Config(method, "jpeg", setting(row), CODED) for row in few(rows, quick)]
    for strategy in ("po", "df", "mbc", "local"):
        if strategy in manifest.strategies:
            method = strategy if strategy == "local" else strategy.upper()
            made.append(Config(method, strategy, {}, CODED))
    return made


def _amot(manifest: Manifest, budgets: Sequence[float], quick: bool) -> Iterator[Config]:
    """A-MOT, with and without its parts, at raw budgets and then coded.

    "direct" methods recover nothing: they classify the patches that were sent, in both rounds, and
    Non-R is their single round. The others are the paper's, and recover, at settings calibrated so.
    """
    direct = table(manifest, "amot", "budgets")
    recoveries = manifest.params("amot").get("recoveries", {})
    recovered = recoveries.get("mae", {}).get("budgets", direct)
    for budget in budgets:
        one = {"r1": budget, "threshold": 0.0, "budget": 0.0}
        runs: dict[str, dict[str, Any]] = {
            "A-MOT-O": {**one, "recovery": "mae"},
            "Non-R": {**one, "recovery": "none"},
        }
        for suffix, rows, recovery in ((" direct", direct, "none"), ("", recovered, "mae")):
            row = within(rows, budget)
            if row is None:
                continue
            # The profile may have a budget of its own, which would cut the first round short.
            fixed = {"r1": row["r1"], "r2": row["r2"], "threshold": row["threshold"], "budget": 0.0}
            runs["MOT" + suffix] = {**fixed, "slo_objective": "fixed", "recovery": recovery}
            if "slo" in manifest.params("amot"):
                best = row.get("adaptive", row)
                adaptive = {"r1": best["r1"], "threshold": best["threshold"], "budget": budget}
                runs["A-MOT" + suffix] = {**adaptive, "recovery": recovery}
        for method, settings in sorted(runs.items(), key=lambda run: METHODS.index(run[0])):
            yield Config(method, "amot", {**settings, "codec": "raw"}, RAW, budget)
            yield Config(method, "amot", settings, CODED, budget)


def table(manifest: Manifest, strategy: str, name: str) -> Sequence[Mapping[str, Any]]:
    """Rows of the parameter `name` of `strategy`."""
    rows: Sequence[Mapping[str, Any]] = manifest.params(strategy).get(name, ())
    if not rows:
        command = "profiles.calibrate" if strategy == "amot" else "profiles.baselines"
        raise OffboardError(
            f"profile {manifest.name!r} has no {strategy} {name}: "
            f"python -m {command} {manifest.name} --amend"
        )
    return rows


def within(rows: Sequence[Mapping[str, Any]], budget: float) -> Mapping[str, Any] | None:
    """The row of the largest budget up to `budget`: rows ascend, in accuracy, too."""
    return next((row for row in reversed(rows) if row["budget"] <= budget + 1e-9), None)


def setting(row: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a row of the profile's tables."""
    return {key: value for key, value in row.items() if key not in ITEM}


def few(rows: Sequence[Mapping[str, Any]], quick: bool) -> Sequence[Mapping[str, Any]]:
    """All rows, or the middle one."""
    return [rows[len(rows) // 2]] if quick and rows else rows


def device_macs(profile: Profile, strategy: str) -> int | None:
    """Multiply-adds of a frame on the device; None where the profile does not say.

    Sampling, resampling and coding pictures are not multiply-adds of a model: 0.
    """
    params = profile.manifest.params(strategy)
    if "device_macs" in params:
        return int(params["device_macs"])
    if strategy == "local":
        return graph.macs(onnx.load(str(profile.directory / params["file"])))
    return None if strategy in ("po", "df", "mbc") else 0
