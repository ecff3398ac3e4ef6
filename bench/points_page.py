"""The tables and plots of `bench deepcod`, for docs/deepcod-bench.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import page
from bench.pair import Row
from bench.points import INPUT, MBPS, METHODS, PHONE, WIFI, fastest, latency_ms, network_ms
from common.errors import OffboardError
from common.profile import Manifest

MARKS = dict(zip(METHODS, "os^vDxP*", strict=True))


def by_point(rows: Sequence[Row], manifest: Manifest) -> str:
    """The paper's Tables 1 and 2: every method at every point, at its chosen setting."""
    whole = _whole(rows)
    lines = ["| point | method | coding | bytes | of raw floats | network at 450 Mbps | top-1 |",
             "|---|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for point in sorted({row["point"] for row in _loopback(rows)}, key=lambda p: (p != INPUT, p)):
        raw = raw_bytes(manifest, point)
        for method in METHODS:
            for row in _chosen(rows, method, point):
                if method == "On-Device":
                    continue
                lines.append(
                    f"| {point} | {method} | {row['coding']} {row['rate']} "
                    f"| {row['bytes_up']:,.0f} | {row['bytes_up'] / raw:.2%} "
                    f"| {network_ms(row['bytes_up'], WIFI):.2f} ms "
                    f"| {row['accuracy']:.1%} ({100 * (row['accuracy'] - whole):+.1f}) |"
                )
    return "\n".join(lines)


def raw_bytes(manifest: Manifest, point: str) -> int:
    """Bytes of what lies at a point as float32; at the input, of the frame."""
    size = manifest.input
    if point == INPUT:
        return 4 * size.height * size.width * size.channels
    shapes: list[list[int]] = manifest.params("offload")["signals"][point]
    return 4 * sum(math.prod(shape) for shape in shapes)


def equal_accuracy(rows: Sequence[Row]) -> str:
    """Bytes that each method's settings need to lose at most so much, at any point."""
    whole = _whole(rows)
    losses = (0.005, 0.01, 0.02, 0.05)
    lines = ["| method | " + " | ".join(f"{100 * loss:g} points lost" for loss in losses) + " |",
             "|---|" + "---:|" * len(losses)]  # fmt: skip
    for method in METHODS:
        found = [row for row in _loopback(rows) if row["method"] == method]
        cells = []
        for loss in losses:
            # Half a frame: shares of frames are compared, not real numbers.
            enough = [r for r in found if r["accuracy"] >= whole - loss - 0.5 / r["n"]]
            best = min(enough, key=lambda row: row["bytes_up"], default=None)
            cells.append("-" if best is None else f"{best['bytes_up']:,.0f} ({best['config']})")
        if found and method != "On-Device":
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def end_to_end(rows: Sequence[Row]) -> str:
    """The paper's Figure 6 as a table: where the time goes at 450 Mbps."""
    lines = ["| method | point | device | network | server | together | top-1 |",
             "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for method in METHODS:
        row = fastest(_loopback(rows), method, WIFI)
        if row is not None:
            lines.append(
                f"| {method} | {row['point']} | {row['device_ms']:.2f} ms "
                f"| {network_ms(row['bytes_up'], WIFI):.2f} ms | {row['server_ms']:.2f} ms "
                f"| {latency_ms(row, WIFI):.2f} ms | {row['accuracy']:.1%} |"
            )
    return "\n".join(lines)


def bandwidths(rows: Sequence[Row], device: float = 1.0) -> str:
    """The paper's Figure 10 as a table: milliseconds end to end, and the point taken."""
    lines = ["| method | " + " | ".join(f"{mbps:g} Mbps" for mbps in MBPS) + " |",
             "|---|" + "---:|" * len(MBPS)]  # fmt: skip
    for method in METHODS:
        cells = []
        for mbps in MBPS:
            row = fastest(_loopback(rows), method, mbps, device)
            place = "" if row is None or method == "On-Device" else f" ({row['point']})"
            cells.append("-" if row is None else f"{latency_ms(row, mbps, device):.1f}{place}")
        if set(cells) != {"-"}:
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def executed(rows: Sequence[Row]) -> str:
    """What really went over shaped links, one frame at a time."""
    lines = ["| method | setting | link | frames | median | 95 % | bytes up | top-1 |",
             "|---|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {row['method']} | {row['config']} | {row['link']} | {row['n']} "
        f"| {row['p50_ms']:.1f} ms | {row['p95_ms']:.1f} ms | {row['bytes_up']:,.0f} "
        f"| {row['accuracy']:.1%} |"
        for row in rows
        if row["method"] in METHODS and row["link"] != "loopback"
    ]
    return "\n".join(lines)


def encoding(rows: Sequence[Row]) -> str:
    """CPU of encoding as a ratio to one JPEG of the frame."""
    lines = ["| point | rate | encoding | JPEG | ratio | JPEG by Pillow | ratio |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {row['point']} | {row['rate']} | {row['device_ms']:.2f} ms | {row['jpeg_ms']:.2f} ms "
        f"| {row['ratio']:.2f} | {row['pillow_ms']:.2f} ms | {row['pillow_ratio']:.2f} |"
        for row in rows
        if row["method"] == "encoding"
    ]
    return "\n".join(lines)


def all_rows(rows: Sequence[Row]) -> str:
    """Every row of whole pairs on the loopback."""
    lines = ["| method | setting | bytes up | top-1 | held out | device | server |",
             "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in _loopback(rows):
        held = "-" if row["expected"] is None else f"{row['expected']:.1%}"
        lines.append(
            f"| {row['method']} | {row['config']} | {row['bytes_up']:,.0f} | {row['accuracy']:.1%} "
            f"| {held} | {row['device_ms']:.2f} ms | {row['server_ms']:.2f} ms |"
        )
    return "\n".join(lines)


def plot_bytes(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy against bytes at the input; DeepCOD's deeper points beside it."""
    for method in METHODS:
        found = [row for row in _loopback(rows) if row["method"] == method and row["bytes_up"]]
        for inside, style in ((True, "-"), (False, "")):
            some = sorted(
                (row["bytes_up"], 100 * row["accuracy"])
                for row in found
                if (row["point"] == INPUT) == inside and (inside or method == "DeepCOD")
            )
            if some:
                label = method if inside else f"{method}, deeper"
                face = None if inside else "none"
                axes.plot(*zip(*some, strict=True), MARKS[method] + style, label=label,
                          markersize=5, markerfacecolor=face)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("bytes up per frame, whole packets")
    axes.set_ylabel("top-1, %")


def plot_latency(axes: Any, rows: Sequence[Row], device: float = 1.0) -> None:
    """The paper's Figure 10."""
    for method in METHODS:
        found = [fastest(_loopback(rows), method, mbps, device) for mbps in MBPS]
        line = [
            (mbps, latency_ms(row, mbps, device))
            for mbps, row in zip(MBPS, found, strict=True)
            if row is not None
        ]
        if line:
            axes.plot(*zip(*line, strict=True), MARKS[method] + "-", label=method, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("Mbps")
    axes.set_ylabel("ms end to end")


def plot_parts(axes: Any, rows: Sequence[Row]) -> None:
    """The paper's Figure 6: device, network and server at 450 Mbps."""
    found = {m: row for m in METHODS if (row := fastest(_loopback(rows), m, WIFI)) is not None}
    left = [0.0] * len(found)
    parts: dict[str, Callable[[Row], float]] = {
        "device": lambda row: float(row["device_ms"]),
        "network": lambda row: network_ms(row["bytes_up"], WIFI),
        "server": lambda row: float(row["server_ms"]),
    }
    for name, part in parts.items():
        width = [part(row) for row in found.values()]
        axes.barh(list(found), width, left=left, label=name)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms end to end at 450 Mbps, on this machine")


PLOTS: dict[str, Callable[[Any, Sequence[Row]], None]] = {
    "": plot_bytes,
    "-parts": plot_parts,
    "-bandwidth": plot_latency,
    "-phone": lambda axes, rows: plot_latency(axes, rows, PHONE),
}


def write(rows: Sequence[Row], manifest: Manifest, directory: Path) -> None:
    """deepcod-PROFILE*.svg, and the tables of deepcod-bench.md between the profile's two lines.

    Raises OffboardError if these are missing.
    """
    profile = manifest.name
    page.fill(directory / "deepcod-bench.md", {profile: tables(rows, manifest)})
    for suffix, draw in PLOTS.items():
        path = directory / f"deepcod-{profile}{suffix}.svg"
        page.plot(draw, rows, profile, path)


def tables(rows: Sequence[Row], manifest: Manifest) -> str:
    """The section of one profile."""
    name = f"deepcod-{manifest.name}"
    parts = [
        f"{_loopback(rows)[0]['n']:,} frames; {_whole(rows):.1%} right without loss.",
        "**Every point** (the paper's Tables 1 and 2), each method at its chosen setting:",
        by_point(rows, manifest),
        "**Bytes at equal accuracy**, of all settings measured, at any point:",
        equal_accuracy(rows),
        f"![accuracy against bytes]({name}.svg)",
        "**Where the time goes** at 450 Mbps (Figure 6), computed from compute measured here:",
        end_to_end(rows),
        f"![device, network and server]({name}-parts.svg)",
        "**From 1 to 450 Mbps** (Figure 10), computed, every method free to move its point; "
        "both sides as fast as this machine:",
        bandwidths(rows),
        f"![latency against bandwidth]({name}-bandwidth.svg)",
        f"The same with a device {PHONE:g} times slower, the paper's phone:",
        bandwidths(rows, PHONE),
        f"![latency against bandwidth, slow device]({name}-phone.svg)",
        "**Executed** over shaped links (`bench.link`), one frame at a time:",
        executed(rows),
    ]
    if any(row["method"] == "encoding" for row in rows):
        parts += ["**Encoding on the device**, CPU, turn by turn with one JPEG of the frame at "
                  "quality 75:", encoding(rows)]  # fmt: skip
    parts += [f"<details><summary>All {len(_loopback(rows))} rows</summary>", all_rows(rows),
              "</details>"]  # fmt: skip
    return "\n\n".join(parts)


def _loopback(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] in METHODS and row["link"] == "loopback"]


def _chosen(rows: Sequence[Row], method: str, point: str) -> list[Row]:
    return [
        r for r in _loopback(rows) if r["chosen"] and (r["method"], r["point"]) == (method, point)
    ]


def _whole(rows: Sequence[Row]) -> float:
    """Accuracy without loss. Raises OffboardError if that was not measured."""
    for row in _loopback(rows):
        if row["coding"] == "lossless":
            return float(row["accuracy"])
    raise OffboardError("no row without loss: measure Offload, too")
