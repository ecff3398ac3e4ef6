"""The main job on this machine: a server and a device, frames through every strategy, the cost.

`./run demo` renders fresh road signs; `--source DIR` takes one's own photos.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import pair
from common import profile as profiles
from common.errors import OffboardError
from profiles.train import signs

FRAMES = 80
OTHERS = ("deepcod", "janus", "dimec", "dimee", "sdt", "isr", "po", "df", "mbc")
"""Strategies that run as their profile has them."""
HEADER = (
    f"{'strategy':22} {'right':>6} {'agrees':>7} {'bytes up':>9} {'rounds':>6} "
    f"{'p50 ms':>7} {'p95 ms':>7} {'device CPU ms':>13}"
)


def configurations(manifest: profiles.Manifest) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, strategy, settings) of every run: the full frame first, then each strategy."""
    runs: list[tuple[str, str, Mapping[str, Any]]] = [("raw, full frame", "raw", {})]
    if "jpeg" in manifest.strategies:
        runs += [(f"jpeg q{quality}", "jpeg", {"quality": quality}) for quality in (75, 30)]
        runs += [
            ("jpeg q30, half size", "jpeg", {"quality": 30, "scale": 0.5}),
            ("webp q25, 0.7 of size", "jpeg", {"format": "webp", "quality": 25, "scale": 0.7}),
        ]
    if "amot" in manifest.strategies:
        chosen = manifest.params("amot")
        total = round(chosen["r1"] + chosen["r2"], 2)
        runs += [
            ("amot, two rounds", "amot", {}),
            (f"amot, one of {total:.0%}", "amot", {"r1": total, "threshold": 0}),
        ]
    runs += [(name, name, {}) for name in OTHERS if name in manifest.strategies]
    if "local" in manifest.strategies:
        runs += [("local, no network", "local", {})]
    return runs


def render(directory: Path, count: int, seed: int) -> None:
    """Write `count` freshly drawn signs, from seeds that no training has seen."""
    first = signs.EVALUATION.start + seed % (len(signs.EVALUATION) - count)
    signs.write(directory, range(first, first + count))


def main(argv: list[str] | None = None) -> int:
    """Run the demo; the exit status is 0 if every frame got an answer in every run."""
    parser = argparse.ArgumentParser(prog="run demo", description=__doc__)
    parser.add_argument("--source", type=Path, help="your own photos; default: rendered signs")
    parser.add_argument("--profile", default="signs", help="default: signs")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"signs to render ({FRAMES})")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the signs")
    options = parser.parse_args(argv)
    if options.source is None and options.profile != "signs":
        parser.error(f"--profile {options.profile} needs --source DIR: it knows no signs")
    if options.frames < 1:
        parser.error("--frames must be at least 1")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = options.source
            if source is None:
                source = Path(scratch)
                print(f"rendering {options.frames} road signs, --seed {options.seed}")
                render(source, options.frames, options.seed)
            return show(options.profile, source)
    except OffboardError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


def show(profile: str, source: Path) -> int:
    """Stream `source` through every strategy of `profile` and print the table."""
    frames = pair.pictures(source)
    if not frames:
        raise OffboardError(f"no pictures below {source}: give a folder of JPEG or PNG files")
    truths = [pair.truth(path) for path in frames]
    manifest = profiles.load(profile).manifest
    print(f"profile {profile}, {len(frames)} frames, device and server on this machine\n{HEADER}")
    reference: list[pair.Row] = []
    rows: list[pair.Row] = []
    with pair.server(profile) as address:
        for name, strategy, settings in configurations(manifest):
            answers = pair.stream(address, source, strategy, settings)
            reference = reference or answers
            row = pair.summary(answers, truths, strategy=strategy, config=name)
            row["agreement"] = pair.agreement(answers, reference)
            rows.append(row)
            print(line(row), flush=True)
    print(explanation(rows))
    return int(any(row["unanswered"] for row in rows))


def line(row: pair.Row) -> str:
    """One row of the table."""
    right = f"{row['accuracy']:6.1%}" if row["accuracy"] is not None else f"{'-':>6}"
    return (
        f"{row['config']:22} {right} {row['agreement']:7.1%} {row['bytes_up']:9,.0f} "
        f"{row['rounds']:6.2f} {row['p50_ms']:7.1f} {row['p95_ms']:7.1f} {row['device_ms']:13.2f}"
    )


def explanation(rows: list[pair.Row]) -> str:
    """Two lines that say what the table means, from its own figures."""
    by_name = {row["config"]: row for row in rows}
    raw, amot = rows[0], by_name.get("amot, two rounds")
    if amot is None:
        return "\nThis profile has no A-MOT: the rows show what a coded frame costs and keeps."
    share = amot["bytes_up"] / raw["bytes_up"]
    first = (
        f"\nA-MOT sent {share:.1%} of the full frame's bytes and agreed with it on "
        f"{amot['agreement']:.0%} of the frames; {2 - amot['rounds']:.0%} needed only one round."
    )
    rivals = [r for r in rows if r["strategy"] == "jpeg" and r["agreement"] >= amot["agreement"]]
    best = min(rivals, key=lambda row: float(row["bytes_up"]), default=None)
    if best is None:
        return f"{first}\nNo coded frame of this table agrees as often."
    ratio = amot["bytes_up"] / best["bytes_up"]
    verdict = f"{1 / ratio:.1f}x fewer" if ratio < 1 else f"{ratio:.1f}x more"
    return (
        f"{first}\nAgainst the cheapest coded frame here that agrees as often ({best['config']}), "
        f"that is {verdict} bytes."
    )


if __name__ == "__main__":
    sys.exit(main())
