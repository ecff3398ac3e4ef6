"""The tables and plots of `bench amot`, for docs/amot.md.

Nothing is chosen here by its measured accuracy: where a method has one row in a table, it is the
profile's setting for that budget, or the dearest one that stays within the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import page
from bench.frontier import BUDGETS, CODED, METHODS, RAW
from bench.pair import Row
from common.errors import OffboardError

LEVELS = (1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 36_000)
"""Coded bytes per frame at which methods are compared."""
MARKS = dict(zip(METHODS, "pHo^vxsDP*X<>hd", strict=True))
ACROSS = 0.4
"""The budget at which methods with one setting each stand beside the others (Fig. 12)."""


def by_method(rows: Sequence[Row], coding: str) -> Iterator[tuple[str, list[Row]]]:
    """(method, its rows of `coding` in the order of their bytes), in the order of METHODS."""
    for method in METHODS:
        found = [row for row in rows if (row["method"], row["coding"]) == (method, coding)]
        if found:
            yield method, sorted(found, key=lambda row: float(row["bytes_up"]))


def budgets(rows: Sequence[Row]) -> str:
    """Accuracy at every budget of raw bytes, the paper's Fig. 11 as a table."""
    shares = [b for b in BUDGETS if any(row["budget"] == b for row in rows)]
    lines = _head("method", [f"{share:.0%}" for share in shares])
    for method, found in by_method(rows, RAW):
        at = {row["budget"]: row for row in found}
        lines.append(_row(method, [_percent(at.get(share)) for share in shares]))
    return "\n".join(lines)


def equal_bytes(rows: Sequence[Row]) -> str:
    """Accuracy of each method's dearest coded setting within each of LEVELS."""
    lines = _head("method", [f"{level:,} B" for level in LEVELS])
    for method, found in by_method(rows, CODED):
        if method == "full frame":
            continue
        cells = []
        for level in LEVELS:
            inside = [row for row in found if row["bytes_up"] <= level]
            cells.append(_percent(inside[-1] if inside else None))
        lines.append(_row(method, cells))
    return "\n".join(lines)


def all_rows(rows: Sequence[Row]) -> str:
    """Every row."""
    lines = [
        "| method | coding | budget | setting | top-1 | bytes up | rounds | device CPU ms "
        "| device multiply-adds |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for coding in (RAW, CODED):
        for method, found in by_method(rows, coding):
            for row in found:
                budget = "" if row["budget"] is None else f"{row['budget']:.0%}"
                macs = row["device_macs"]
                macs = "-" if macs is None else f"{macs / 1e6:.1f} M" if macs else "0"
                lines.append(
                    f"| {method} | {coding} | {budget} | {row['config']} | {_percent(row)} "
                    f"| {row['bytes_up']:,.0f} | {row['rounds']:.2f} | {row['device_ms']:.2f} "
                    f"| {macs} |"
                )
    return "\n".join(lines)


def _head(first: str, others: Sequence[str]) -> list[str]:
    return [_row(first, others), "|---|" + "---:|" * len(others)]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"


def _percent(row: Row | None) -> str:
    return "-" if row is None or row["accuracy"] is None else f"{row['accuracy']:.1%}"


def plot_bytes(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy against coded bytes."""
    for method, found in by_method(rows, CODED):
        points = [(max(row["bytes_up"], 300), 100 * row["accuracy"]) for row in found]
        axes.plot(*zip(*points, strict=True), MARKS[method] + "-", label=method, markersize=5)
    axes.set_xscale("log")
    axes.set_xlabel("bytes up per frame (whole packets; local, which sends none, at the left)")


def plot_budgets(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy against the budget of raw bytes: the paper's Fig. 11."""
    for method, found in by_method(rows, RAW):
        points = sorted((100 * row["budget"], 100 * row["accuracy"]) for row in found)
        axes.plot(*zip(*points, strict=True), MARKS[method] + "-", label=method, markersize=5)
    axes.set_xlabel("budget, % of the raw frame's bytes")


def plot_macs(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy against the device's multiply-adds, with the bytes: the paper's Fig. 12."""
    for method, found in by_method(rows, CODED):
        chosen = [row for row in found if row["budget"] in (None, ACROSS)]
        row = chosen[len(chosen) // 2] if chosen else found[len(found) // 2]
        if row["device_macs"] is None:
            continue
        point = (row["device_macs"] / 1e6, 100 * row["accuracy"])
        axes.plot(*point, MARKS[method], label=f"{method}, {row['bytes_up'] / 1000:.1f} kB")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("multiply-adds of models on the device, millions")


PLOTS: dict[str, Callable[[Any, Sequence[Row]], None]] = {
    "": plot_bytes,
    "-budget": plot_budgets,
    "-macs": plot_macs,
}
"""What a file's name ends with -> what draws it."""


def write(rows: Sequence[Row], directory: Path) -> None:
    """PROFILE.svg, PROFILE-budget.svg and PROFILE-macs.svg, and the tables of amot.md.

    The tables stand between the lines "<!-- PROFILE -->" and "<!-- /PROFILE -->". Raises
    OffboardError if these are missing, or rows are of several runs.
    """
    runs = {(row["profile"], row["weights"], row["n"]) for row in rows}
    if len(runs) != 1:
        raise OffboardError(f"rows of {len(runs)} runs, not of one: profile, weights, frames")
    ((profile, _, count),) = runs
    page.fill(directory / "amot.md", {profile: tables(rows, profile, count)})
    for suffix, draw in PLOTS.items():
        path = directory / f"{profile}{suffix}.svg"
        page.plot(draw, rows, f"{profile}: {count} frames", path, "top-1, %")


def tables(rows: Sequence[Row], profile: str, count: int) -> str:
    """The section of one profile."""
    return "\n\n".join(
        (
            f"{count:,} frames. Accuracy at budgets of raw bytes:",
            budgets(rows),
            f"![accuracy against budget]({profile}-budget.svg)",
            "Accuracy at coded bytes, each method at its dearest setting that stays within:",
            equal_bytes(rows),
            f"![accuracy against bytes]({profile}.svg)",
            f"![accuracy against the device's multiply-adds]({profile}-macs.svg)",
            f"<details><summary>All {len(rows)} rows</summary>",
            all_rows(rows),
            "</details>",
        )
    )
