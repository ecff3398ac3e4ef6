"""The tables and plots of `bench janus`, for docs/janus-results.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.scenarios import BASELINES, ORACLE, OURS, PAPER, Row

PAGE = "janus-results.md"
STYLES = dict(zip((*BASELINES, PAPER, OURS), ("C7--", "C1-", "C2-.", "C4-", "C0-"), strict=True))


def figure7(rows: Sequence[Row]) -> str:
    """Violations, throughput, accuracy and deviation, per scenario and method."""
    lines = [
        "| task | scenario | method | frames | violations | frames/s | accuracy | ours loses "
        "| deviation | p50, p95 ms | kB up | sent whole / split / alone | given up |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['task']} | {row['scenario']} | {row['method']} | {row['n']:,} "
        f"| {row['violations']:.2%} | {row['throughput']:.2f} | {row['accuracy']:.2f} "
        f"| {-row['own']:.2f} | {row['deviation']:.0%} | {row['p50_ms']:.0f}, {row['p95_ms']:.0f} "
        f"| {row['bytes_up'] / 1e3:.0f} "
        f"| {row['sent_whole']:.0%} / {row['split']:.0%} / {row['alone']:.0%} "
        f"| {row['gave_up']:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, Mapping[str, Row]]]:
    """(task, scenario, method -> row)."""
    for task, group in dict.fromkeys((row["task"], row["scenario"]) for row in rows):
        yield (
            task,
            group,
            {row["method"]: row for row in rows if (row["task"], row["scenario"]) == (task, group)},
        )


def gains(rows: Sequence[Row]) -> str:
    """Ours against each baseline: throughput as a factor, violations cut, accuracy gained."""
    lines = [
        "| task | scenario | " + " | ".join(f"{name}: times, cut, points" for name in BASELINES)
        + " |",
        "|---|---|" + "---:|" * len(BASELINES),
    ]  # fmt: skip
    for task, group, at in groups(rows):
        cells = []
        for name in BASELINES:
            theirs, own = at[name], at[OURS]
            cut = "none to cut"
            if theirs["violations"] > 0:
                cut = f"{1 - own['violations'] / theirs['violations']:.1%}"
            cells.append(
                f"{own['throughput'] / theirs['throughput']:.2f}, {cut}, "
                f"{own['accuracy'] - theirs['accuracy']:+.2f}"
            )
        lines.append(f"| {task} | {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def oracles(rows: Sequence[Row]) -> str:
    """Ours against the oracle that knows the trace."""
    lines = [
        "| task | scenario | violations, ours and oracle | throughput, of the oracle's "
        "| accuracy, ours and oracle | predicted, median and p95 error |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task, group, at in groups(rows):
        own, best = at[OURS], at[ORACLE]
        lines.append(
            f"| {task} | {group} | {own['violations']:.2%}, {best['violations']:.2%} "
            f"| {own['throughput'] / best['throughput']:.1%} "
            f"| {own['accuracy']:.2f}, {best['accuracy']:.2f} "
            f"| {own['predicted_p50']:.1%}, {own['predicted_p95']:.1%} |"
        )
    return "\n".join(lines)


def table2(rows: Sequence[Row]) -> str:
    """What a frame's time is made of."""
    lines = [
        "| link | scheduler | decides in | system | device | transmission | cloud |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        shares = " | ".join(f"{row[k]:.3%}" for k in ("system", "device", "link", "server"))
        lines.append(
            f"| {row['network']} | {row['method']} | {row['decides_us']:.0f} us | {shares} |"
        )
    return "\n".join(lines)


def plot7(rows: Sequence[Row], task: str, path: Path) -> None:
    """Bars per scenario: violations, throughput, accuracy, deviation."""
    figure, axes = _figure(2, 2, (11, 7))
    found = [(group, at) for name, group, at in groups(rows) if name == task]
    names = [name for name in (*BASELINES, PAPER, OURS, ORACLE) if name in found[0][1]]
    kinds = (
        ("violations", 100, "violations, %"),
        ("throughput", 1, "frames a second"),
        ("accuracy", 1, "accuracy, % (published)"),
        ("deviation", 100, "deviation, %"),
    )
    for place, (key, factor, label) in zip(axes.flat, kinds, strict=True):
        for i, name in enumerate(names):
            values = [factor * at[name][key] for _, at in found]
            where = [x + (i - len(names) / 2) * 0.13 for x in range(len(found))]
            place.bar(where, values, 0.13, label=name)
        place.set_xticks(range(len(found)), [group for group, _ in found], rotation=20)
        place.set_ylabel(label)
        if key == "accuracy":
            values = [at[name][key] for _, at in found for name in names]
            place.set_ylim(min(values) - 0.2, max(values) + 0.2)
        if key == "deviation":
            place.set_yscale("log")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def plot8(series: Mapping[str, Any], path: Path) -> None:
    """Bandwidth, split, alpha and throughput over time."""
    figure, axes = _figure(4, 1, (9, 8), sharex=True)
    axes[0].plot(series["seconds"], series["mbps"], "k-")
    axes[0].set_ylabel("uplink, Mbps")
    for name, values in series["methods"].items():
        style = STYLES[name]
        axes[1].plot(series["seconds"], values["throughput"], style, label=name)
        if name in (PAPER, OURS):
            axes[2].plot(series["seconds"], values["split"], style, label=name)
            axes[3].plot(series["seconds"], values["alpha"], style, label=name)
    for place, label in zip(axes[1:], ("frames a second", "split", "alpha"), strict=True):
        place.set_ylabel(label)
        place.legend(fontsize="small")
    axes[3].set_xlabel(f"seconds of {series['trace']}")
    figure.savefig(path, metadata={"Date": None})


def plot9(sweep: Mapping[str, Any], path: Path) -> None:
    """Latency, split and alpha against bandwidth."""
    figure, axes = _figure(3, 1, (8, 8), sharex=True)
    for name, values in sweep["methods"].items():
        axes[0].plot(sweep["mbps"], values["latency"], STYLES[name], label=name)
        if name in (PAPER, OURS):
            axes[1].plot(sweep["mbps"], values["split"], STYLES[name], label=name)
            axes[2].plot(sweep["mbps"], values["alpha"], STYLES[name], label=name)
    axes[0].axhline(sweep["requirement"], color="r", lw=0.8)
    axes[0].set_ylim(0, 3 * sweep["requirement"])
    for place, label in zip(axes, ("latency, ms", "split", "alpha"), strict=True):
        place.set_ylabel(label)
        place.legend(fontsize="small")
    axes[2].set_xscale("log")
    axes[2].set_xlabel("uplink, Mbps")
    figure.savefig(path, metadata={"Date": None})


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for place in axes.flat:
        place.grid(alpha=0.3)
    return figure, axes
