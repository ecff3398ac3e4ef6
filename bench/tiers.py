"""DIMEC-DC and DIMEE: the papers' tables, and what they lack: three real processes on real links.

    ./run bench tiers --data sst2 --quick
    ./run bench tiers --data sst2 --json tiers.json --docs docs
    ./run bench tiers --data sst2 --part links --links 4g --count 100
    ./run bench tiers --profile imagenette --data imagenette-train.tar imagenette-val.tar

The tables are arithmetic on what each exit says of a sample (`bench.tiertables`); costs are the
profile's, in lambda, and can be set. The links are measured (`bench.tierlinks`): a device, an edge
and a cloud process, every sample of the last path given through the real path, one at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from bench import pair, tierlinks, tiertables
from bench.page import fill
from common import profile as profiles
from common.errors import OffboardError
from common.profile import Profile
from profiles.pools import Costs

PARTS = ("tables", "links")
COUNT = 100
"""Samples on a shaped link; an open one takes them all, and so do the tables."""
QUICK = 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run bench tiers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--profile", default="sst2")
    made.add_argument(
        "--data",
        type=Path,
        required=True,
        nargs="+",
        metavar="PATH",
        help="the folder of SST-2's tables, or tar files or folders: photographs' train and val",
    )
    made.add_argument("--part", choices=PARTS, help="only this one")
    made.add_argument("--links", default=",".join(tierlinks.LINKS), help="comma-separated")
    made.add_argument("--count", type=int, help=f"so many samples (default: {COUNT} a link)")
    made.add_argument("--quick", action="store_true", help="few samples, few variations")
    for cost in fields(Costs):
        made.add_argument(
            f"--{cost.name.replace('_', '-')}",
            type=float,
            help="in lambda (default: the profile's)",
        )
    made.add_argument("--json", type=Path, help="write the rows of the links here, one by one")
    made.add_argument(
        "--docs", type=Path, metavar="DIR", help="write the plots, and the tables of DIR/tiers.md"
    )
    return made


def offered(profile: Profile) -> list[str]:
    """What of both the profile has."""
    return [name for name in tierlinks.STRATEGIES if name in profile.manifest.strategies]


def links(options: argparse.Namespace, profile: Profile) -> str:
    """Measure, print each row; the tables."""
    data = options.data[-1]
    found = [data / inside for inside in (tiertables.EVALUATION, "val") if (data / inside).exists()]
    data = found[0] if found else data
    rows: list[pair.Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for link in options.links.split(","):
            count = options.count or (QUICK if options.quick else COUNT)
            if tierlinks.LINKS[link] is None and not (options.quick or options.count):
                count = None
            given = tierlinks.samples(profile, data, count, Path(scratch) / link)
            for row in tierlinks.measure(profile, given, link, tierlinks.WAYS, offered(profile)):
                rows.append(row)
                pair.write_json(rows, options.json)
                print(tierlinks.table([row]), flush=True)
    return tierlinks.table(rows)


def tables(options: argparse.Namespace, profile: Profile) -> str:
    """The papers' tables, and the plots where documents are written."""
    given = {cost.name: getattr(options, cost.name) for cost in fields(Costs)}
    given = {name: value for name, value in given.items() if value is not None}
    costs = replace(tiertables.costs_of(profile), **given)
    factors = (0.5, 2.0) if options.quick else tiertables.FACTORS
    count = options.count or (QUICK if options.quick else None)
    parts = []
    for study in tiertables.studies(profile, options.data, costs, count):
        parts.append(tiertables.section(study, factors))
        print(parts[-1], flush=True)
        if options.docs is not None:
            name = f"{profile.name}-{study.name}-pools.svg"
            tiertables.draw_pools(study, options.docs / name)
            parts.append(f"![pools of {study.name}]({name})")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    options = parser().parse_args(argv)
    unknown = set(options.links.split(",")) - set(tierlinks.LINKS)
    if unknown:
        parser().error(
            f"--links {','.join(sorted(unknown))}: choose of {', '.join(tierlinks.LINKS)}"
        )
    if options.count is not None and options.count < 1:
        parser().error("--count must be at least 1")
    try:
        profile = profiles.load(options.profile)
        if not offered(profile):
            raise OffboardError(f"profile {profile.name!r} offers neither dimec nor dimee")
        for part, make in (("tables", tables), ("links", links)):
            if options.part in (None, part):
                text = make(options, profile)
                if options.docs is not None:
                    fill(options.docs / "tiers.md", {f"{profile.name} {part}": text})
    except (OffboardError, OSError, ValueError) as error:
        print(f"bench tiers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
