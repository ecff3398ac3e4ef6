"""A-MOT on labelled frames through the real pair: accuracy, bytes and rounds beside raw and JPEG.

    ./run bench amot --profile imagenette --data imagenette-val.tar
    ./run bench amot --profile signs

Every row is one device process that streams all frames to one server process. Several frames are
in flight, so the latencies of this bench are those of a busy pair; `./run demo` has those of one
frame at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import pair
from bench.demo import render
from common.errors import OffboardError

Config = tuple[str, str, Mapping[str, Any]]
SIGNS = 1000
QUICK = 100
IN_FLIGHT = 8


def configurations(quick: bool) -> list[Config]:
    """(config, strategy, settings) of every row."""
    runs: list[Config] = [("full frame, zstd", "raw", {"codec": "zstd"})]
    jpegs = [(75, 1.0), (30, 1.0), (50, 0.5)]
    if not quick:
        jpegs = [(90, 1.0), (75, 1.0), (30, 1.0), (10, 1.0), (75, 0.5), (30, 0.5), (30, 0.25)]
    runs += [
        (f"q{quality} scale {scale:g}", "jpeg", {"quality": quality, "scale": scale})
        for quality, scale in jpegs
    ]
    runs += [("profile's choice", "amot", {})]
    if not quick:
        runs += [(f"one round, {r:.0%}", "amot", {"r1": r, "threshold": 0}) for r in (0.25, 0.4)]
        runs += [
            (f"{r1:.0%} + {r2:.0%} at 0.8", "amot", {"r1": r1, "r2": r2, "threshold": 0.8})
            for r1, r2 in ((0.15, 0.1), (0.25, 0.2), (0.4, 0.2))
        ]
        runs += [(f"choice, {codec}", "amot", {"codec": codec}) for codec in ("raw", "lz4", "zstd")]
        runs += [(f"choice, mosaic q{q}", "amot", {"quality": q}) for q in (25, 50, 90)]
    return [*runs, ("on the device", "local", {})]


def measure(profile: str, source: Path, quick: bool) -> list[pair.Row]:
    """Every configuration over the frames of `source`."""
    frames = pair.pictures(source)
    if not frames:
        raise OffboardError(f"no pictures below {source}")
    truths = [pair.truth(path) for path in frames]
    rows = []
    print(f"{'strategy':9} {'config':22} {'top-1':>6} {'agrees':>7} {'bytes up':>9} {'rounds':>6}")
    with pair.server(profile) as address:
        reference: Sequence[pair.Row] = []
        for config, strategy, settings in configurations(quick):
            started = time.monotonic()
            answers = pair.stream(address, source, strategy, settings, in_flight=IN_FLIGHT)
            seconds = time.monotonic() - started
            reference = reference or answers
            row = pair.summary(
                answers,
                truths,
                seconds=seconds,
                bench="amot",
                profile=profile,
                strategy=strategy,
                config=config,
                agreement=pair.agreement(answers, reference),
            )
            rows.append(row)
            top1 = f"{row['accuracy']:6.1%}" if row["accuracy"] is not None else f"{'-':>6}"
            print(
                f"{strategy:9} {config:22} {top1} {row['agreement']:7.1%} "
                f"{row['bytes_up']:9,.0f} {row['rounds']:6.2f}",
                flush=True,
            )
    return rows


def plot(rows: Sequence[pair.Row], path: Path) -> None:
    """Bytes up per frame against accuracy, one mark per configuration, as a PNG or SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for strategy, mark in (("raw", "s"), ("jpeg", "o"), ("amot", "^"), ("local", "*")):
        chosen = [row for row in rows if row["strategy"] == strategy]
        points = sorted((max(row["bytes_up"], 100), 100 * row["accuracy"]) for row in chosen)
        axes.plot(*zip(*points, strict=True), mark, label=strategy)
    axes.set_xscale("log")
    axes.set_xlabel("bytes up per frame (whole packets; local, which sends none, at the left)")
    axes.set_ylabel("top-1, %")
    axes.set_title(f"{rows[0]['profile']}: {rows[0]['n']} frames through device and server")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def table(rows: Sequence[pair.Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| strategy | configuration | top-1 | agrees with full frame | bytes up | rounds "
        "| device CPU ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['strategy']} | {row['config']} | {row['accuracy']:.1%} | {row['agreement']:.1%} "
        f"| {row['bytes_up']:,.0f} | {row['rounds']:.2f} | {row['device_ms']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="run bench amot", description=__doc__)
    parser.add_argument("--profile", default="signs")
    parser.add_argument("--data", type=Path, help="labelled photos: a folder, or a tar file")
    parser.add_argument("--split", default="val", help="folder inside the tar file")
    parser.add_argument("--quick", action="store_true", help="few configurations, few signs")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="write bytes against accuracy here (.png, .svg)")
    parser.add_argument("--table", type=Path, help="write a Markdown table here")
    options = parser.parse_args(argv)
    if options.data is None and options.profile != "signs":
        parser.error(f"--profile {options.profile} needs --data: labelled photos")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch)
            if options.data is not None:
                source = pair.extracted(options.data, options.split)
            else:
                render(source, QUICK if options.quick else SIGNS, seed=0)
            rows = measure(options.profile, source, options.quick)
    except OffboardError as error:
        print(f"bench amot: {error}", file=sys.stderr)
        return 2
    pair.write_json(rows, options.json)
    if options.plot is not None:
        plot(rows, options.plot)
    if options.table is not None:
        options.table.write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
