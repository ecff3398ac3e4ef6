"""A-MOT and all it is compared with through the real pair: accuracy, bytes, rounds, device work.

    ./run bench amot --quick
    ./run bench amot --json signs.json --docs docs
    ./run bench amot --profile imagenette --data imagenette-val.tar --frames 500 --json photos.json

Every row is one device process that streams all frames to one server process. Several frames are
in flight, so the latencies of this bench are those of a busy pair; `./run demo` has those of one
frame at a time. A setting that stands at several budgets is measured once. Rows are written as they
come: with `--resume` a run goes on where it stopped, and one with nothing left to measure only
writes what was asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import frontier, pair, plots
from bench.demo import render
from bench.frontier import Config
from common import profile as profiles
from common.errors import OffboardError
from common.profile import Profile

SIGNS = 1000
QUICK = 100
IN_FLIGHT = 8


def measure(
    profile: Profile,
    source: Path,
    configs: Sequence[Config],
    rows: list[pair.Row],
    path: Path | None,
) -> None:
    """Add a row to `rows` for each of `configs` that has none yet, and write them to `path`.

    What its strategy gave at the same settings, for another budget, is its row, too.
    """
    frames = pair.pictures(source)
    if not frames:
        raise OffboardError(f"no pictures below {source}")
    truths = [pair.truth(frame) for frame in frames]
    weights = next(m.sha256[:12] for m in profile.models.values() if m.kind == "vit")
    names = {"bench": "amot", "profile": profile.name, "weights": weights, "n": len(frames)}
    with contextlib.ExitStack() as stack:
        address = ""
        for config in configs:
            named = identity(config) | names
            if any(key(row) == key(named) for row in rows):
                continue
            row = next((row for row in rows if run(row) == run(named)), None)
            if row is None:
                address = address or stack.enter_context(pair.server(str(profile.directory)))
                started = time.monotonic()
                answers = pair.stream(
                    address, source, config.strategy, config.settings, in_flight=IN_FLIGHT
                )
                row = pair.summary(answers, truths, seconds=time.monotonic() - started)
                row["device_macs"] = frontier.device_macs(profile, config.strategy)
            rows.append({**row, **named})
            pair.write_json(rows, path)
            print(line(rows[-1]), flush=True)


def identity(config: Config) -> pair.Row:
    """The columns that say what a row is of."""
    return {
        "method": config.method,
        "strategy": config.strategy,
        "coding": config.coding,
        "budget": config.budget,
        "config": config.name,
    }


def key(row: pair.Row) -> tuple[object, ...]:
    """What no two rows share."""
    return (*run(row), row["method"], row["coding"], row["budget"])


def run(row: pair.Row) -> tuple[object, ...]:
    """What makes two rows the same measurement."""
    return tuple(row[column] for column in ("profile", "weights", "n", "strategy", "config"))


def line(row: pair.Row) -> str:
    """A row as it is printed while the bench runs."""
    budget = "" if row["budget"] is None else f"{row['budget']:.0%}"
    top1 = "     -" if row["accuracy"] is None else f"{row['accuracy']:6.1%}"
    return (
        f"{row['method']:10} {row['coding']:5} {budget:>4} {top1} {row['bytes_up']:9,.0f} B "
        f"{row['rounds']:4.2f} rounds {row['device_ms']:6.2f} ms  {row['config']}"
    )


def subset(source: Path, count: int, scratch: Path) -> Path:
    """A folder with links to `count` evenly spaced pictures of `source`, in folders as there."""
    frames = pair.pictures(source)
    for index in range(min(count, len(frames))):
        frame = frames[index * len(frames) // min(count, len(frames))]
        link = scratch / frame.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(frame.resolve())
    return scratch


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run bench amot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--profile", default="signs")
    made.add_argument("--data", type=Path, help="labelled photos: a folder, or a tar file")
    made.add_argument("--split", default="val", help="folder inside the tar file")
    made.add_argument("--frames", type=int, help=f"so many, evenly spaced (signs: {SIGNS})")
    made.add_argument("--quick", action="store_true", help="few configurations, few signs")
    made.add_argument(
        "--only", default="", metavar="REGEX", help='found in "METHOD CODING BUDGET SETTINGS"'
    )
    made.add_argument("--json", type=Path, help="write the rows here, one by one")
    made.add_argument("--resume", action="store_true", help="keep the rows in --json")
    made.add_argument(
        "--docs", type=Path, metavar="DIR", help="write plots and the tables of DIR/amot.md"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    options = parser().parse_args(argv)
    try:
        re.compile(options.only)
    except re.error as error:
        parser().error(f"--only {options.only!r}: {error}")
    if options.frames is not None and options.frames < 1:
        parser().error("--frames must be at least 1")
    try:
        profile = profiles.load(options.profile)
        if options.data is None and profile.name != "signs":
            parser().error(f"--profile {options.profile} needs --data: labelled photos")
        configs = frontier.configurations(profile.manifest, options.quick)
        wanted = [config for config in configs if config.matches(options.only)]
        rows = pair.kept(options.json, options.resume)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch)
            if options.data is None:
                render(source, options.frames or (QUICK if options.quick else SIGNS), seed=0)
            elif options.frames is None:
                source = pair.extracted(options.data, options.split)
            else:
                whole = pair.extracted(options.data, options.split)
                source = subset(whole, options.frames, source)
            measure(profile, source, wanted, rows, options.json)
        if options.docs is not None:
            # Rows that a run kept may have settings that the profile has not any more.
            present = [identity(config) for config in configs]
            plots.write(
                [r for r in rows if any(i.items() <= r.items() for i in present)], options.docs
            )
    except (OffboardError, OSError) as error:
        print(f"bench amot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
