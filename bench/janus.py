"""Janus beside its baselines: replayed on the paper's machines, and by the real pair here.

    ./run bench janus --traces TRACES --quick
    ./run bench janus --traces TRACES --machines machines.json --json rows.json --docs docs
    ./run bench janus --traces TRACES --pair imagenette --data imagenette-val.tar --frames 100
    ./run bench janus --traces TRACES --pair clips --frames 100

TRACES is a folder of CSV files of t_s,mbps, named SCENARIO-... (5g-walking-..., mahimahi-...). The
replay is pure simulation (`bench.scenarios` says of what) and takes minutes of one core; the real
pair runs only with --pair. The two are never mixed: each has its own table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import timeit
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import janus_page as page
from bench import janus_pair, machines, pair, scenarios, splits
from bench.page import fill
from bench.scenarios import BASELINES, OURS, PAPER, Row, World
from bench.traces import Trace, folder
from common import profile as profiles
from common.errors import ConfigError, OffboardError
from device.partition import LINKS
from device.scheduler import K, Scheduler, algorithm1
from device.steering import SLACK
from profiles.replay import Setting, Uplink, replay

SERIES = "lte-driving-run08"
"""The trace of the paper's Fig. 8."""
WINDOW = 30
"""Seconds of it, those with the least bandwidth."""
SWEEP = tuple(float(f"{mbps:.3g}") for mbps in np.geomspace(0.5, 100, 24))
NETWORKS = {
    "WiFi": (29.3, "Wi-Fi", 500.0),
    "5G": (17.8, "5G", 500.0),
    "4G": (10.1, "4G", 500.0),
    "outage": (0.1, "4G", 100.0),
}
"""Table II: mean Mbps, whose round trip, the requirement in ms; last, one that nothing meets."""
PAIR_TRACES = ("lte-driving-run08", "5g-driving-run04", "mahimahi-TMobile-UMTS-driving")


def figure7(world: World, traces: Mapping[str, Trace], rows: list[Row], path: Path | None) -> None:
    """Add a row per scenario and method that `rows` has not; write them to `path`."""
    made = scenarios.policies(world)
    known = {(row["task"], row["scenario"], row["method"]) for row in rows}
    for group in dict.fromkeys(map(scenarios.scenario, traces)):
        names = [name for name in traces if scenarios.scenario(name) == group]
        for method, make in made.items():
            if (world.task.name, group, method) in known:
                continue
            runs = [scenarios.replayed(world, make, name, traces[name]) for name in names]
            rows.append(scenarios.row(world, method, group, runs))
            pair.write_json(rows, path)
            print(page.figure7(rows[-1:]).splitlines()[-1], flush=True)


def figure8(world: World, name: str, trace: Trace) -> dict[str, Any]:
    """Second by second of the window of least bandwidth: means over its frames."""
    uplink = scenarios.uplink(trace)
    whole = int(uplink.length // 1e3)
    carried = [float(uplink.carried(1e3 * (s + 1)) - uplink.carried(1e3 * s)) for s in range(whole)]
    sums = [sum(carried[s : s + WINDOW]) for s in range(max(1, whole - WINDOW + 1))]
    first = int(np.argmin(sums))
    seconds = list(range(first, min(first + WINDOW, whole)))
    made = scenarios.policies(world)
    series: dict[str, Any] = {
        "trace": name,
        "seconds": seconds,
        "mbps": [carried[s] / 125e3 for s in seconds],
        "methods": {},
    }
    for method in (*BASELINES, PAPER, OURS):
        frames = scenarios.replayed(world, made[method], name, trace)
        values: dict[str, list[float]] = {"throughput": [], "split": [], "alpha": []}
        for s in seconds:
            # The frame under way, too: one that waits out an outage is many seconds' only one.
            inside = [
                f for f in frames if f.start < 1e3 * (s + 1) and f.start + f.latency > 1e3 * s
            ]
            values["throughput"].append(1e3 / float(np.mean([f.latency for f in inside])))
            values["split"].append(float(np.mean([f.chosen.split for f in inside])))
            values["alpha"].append(float(np.mean([f.chosen.alpha for f in inside])))
        series["methods"][method] = values
    return series


def figure9(world: World) -> dict[str, Any]:
    """Latency, split and alpha on links that do not change."""
    made = scenarios.policies(world)
    found: dict[str, Any] = {
        "mbps": list(SWEEP), "requirement": world.task.requirement, "methods": {}
    }  # fmt: skip
    for method in (*BASELINES, PAPER, OURS):
        values: dict[str, list[float]] = {"latency": [], "split": [], "alpha": []}
        for mbps in SWEEP:
            given = Setting(LINKS["4G"][1], world.task.requirement, mbps * 125.0)
            last = replay(made[method](given.prior), Uplink([0, 2e4], [mbps]), given)[-1]
            values["latency"].append(last.latency)
            values["split"].append(last.chosen.split)
            values["alpha"].append(last.chosen.alpha)
        found["methods"][method] = values
    return found


def table2(world: World) -> list[Row]:
    """What a frame's time is made of on steady links; the scheduler's own is measured here."""
    rows = []
    ours = world.ours()
    scheduler = Scheduler(ours, SLACK)
    for network, (mbps, like, requirement) in NETWORKS.items():
        rate, rtt = mbps * 125.0, LINKS[like][1]
        for method in ("Algorithm 1", "ours"):
            decide = partial(scheduler.decide, rate, requirement, rtt)
            if method != "ours":
                decide = partial(
                    algorithm1, world.task.shape, world.device, world.server, world.exact,
                    world.frame(scenarios.LZW), rate, requirement, rtt, K,
                )  # fmt: skip
            chosen = decide()
            spent = min(timeit.repeat(decide, number=20, repeat=5)) / 20 * 1e3
            total = spent + chosen.total_ms
            rows.append({
                "bench": "janus overhead",
                "network": f"{network}, {mbps:g} Mbps",
                "method": method,
                "decides_us": spent * 1e3,
                "system": spent / total,
                "device": chosen.device_ms / total,
                "link": chosen.link_ms / total,
                "server": chosen.server_ms / total,
            })  # fmt: skip
    return rows


def simulated(options: argparse.Namespace) -> list[Row]:
    """The replay: its rows, and its sections and plots where they were asked for."""
    traces = folder(options.traces)
    if options.quick:
        first = {scenarios.scenario(name): name for name in reversed(traces)}
        traces = {name: traces[name] for name in sorted(first.values())}
    if options.only:
        traces = {n: t for n, t in traces.items() if scenarios.scenario(n) in options.only}
    names = list(dict.fromkeys(scenarios.MODELS[task] for task in ("image", *options.tasks)))
    if options.docs is not None:
        names.append("vit_b_224")  # to be read beside the others
    found = machines.load(options.machines, names)
    made = scenarios.worlds(found, options.tasks)
    print(f"{machines.table(found)}\n\nfactors: {factors(made[0])}\n", flush=True)
    rows = pair.kept(options.json, options.resume)
    for world in made:
        figure7(world, traces, rows, options.json)
    overhead = table2(made[0])
    print(f"\n{page.gains(rows)}\n\n{page.oracles(rows)}\n\n{page.table2(overhead)}", flush=True)
    if options.docs is not None:
        traces = folder(options.traces)
        series = SERIES if SERIES in traces else next(iter(traces))
        for world in made:
            page.plot7(rows, world.task.name, options.docs / f"janus-{world.task.name}.svg")
        page.plot8(figure8(made[0], series, traces[series]), options.docs / "janus-series.svg")
        page.plot9(figure9(made[0]), options.docs / "janus-sweep.svg")
        fill(options.docs / page.PAGE, {
            "machines": f"{machines.table(found)}\n\nFactors: {factors(made[0])}.",
            "figure7": page.figure7(rows),
            "gains": page.gains(rows),
            "oracles": page.oracles(rows),
            "table2": page.table2(overhead),
        })  # fmt: skip
    return rows


def factors(world: World) -> str:
    """How much slower than measured here the paper's machines are."""
    device, server = world.slowed
    return f"device x{device:.3f} (Jetson Orin Nano), server x{server:.5f} (V100)"


def real(options: argparse.Namespace) -> list[Row]:
    """The real pair over some of the traces."""
    profile = profiles.load(options.pair)
    every = folder(options.traces)
    names = [name for name in PAIR_TRACES if name in every] or list(every)[:1]
    traces = {name: every[name] for name in (names[:1] if options.quick else names)}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        source = splits.labelled(profile.manifest, options.data, options.frames, Path(scratch))
        for row in janus_pair.measure(
            profile, *source, traces, options.requirements, LINKS["4G"][1]
        ):
            rows.append(row)
            print(janus_pair.table(rows[-1:]).splitlines()[-1], flush=True)
    if options.docs is not None:
        fill(options.docs / page.PAGE, {f"pair {profile.name}": janus_pair.table(rows)})
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run bench janus", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--traces", type=Path, required=True, help="folder of t_s,mbps files")
    made.add_argument("--quick", action="store_true", help="one trace a scenario")
    made.add_argument("--tasks", nargs="+", choices=list(scenarios.MODELS),
                      default=["image"], help="what is replayed")  # fmt: skip
    made.add_argument("--only", nargs="+", metavar="SCENARIO", help="5g-static, mahimahi, ...")
    made.add_argument("--machines", type=Path, metavar="FILE",
                      help="layers measured before; written if it is not there")  # fmt: skip
    made.add_argument("--pair", metavar="PROFILE", help="run the real pair instead")
    made.add_argument("--data", type=Path, help="of the pair: labelled photos, folder or tar")
    made.add_argument("--frames", type=int, default=100, help="of the pair, evenly spaced")
    made.add_argument("--requirements", type=float, nargs="+", default=[100.0], metavar="MS")
    made.add_argument("--json", type=Path, help="write the rows here, one by one")
    made.add_argument("--resume", action="store_true", help="keep the replayed rows in --json")
    made.add_argument("--docs", type=Path, metavar="DIR", help=f"write plots and DIR/{page.PAGE}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    options = parser().parse_args(argv)
    try:
        pair.write_json(real(options) if options.pair else simulated(options), options.json)
    except (OffboardError, ConfigError, OSError, ValueError) as error:
        print(f"bench janus: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
