"""Carrying a payload up and 200 bytes down: Offboard against raw sockets and the libraries.

    python -m bench.transport [--quick] [--json FILE] [--markdown FILE] [--only NAME,...]

Everything runs on loopback in two processes per rival, in interleaved rounds (A B C, A B C, ...):
each round's figures are divided by the raw socket's of the same round, and the medians of these
ratios are reported, so a busy machine troubles all alike. Where that is permitted, the processes
run at real-time priority, with a rest after each burst for whatever else the machine does. `rtt`:
the median round trip; `rate`: round trips a second; `cpu`: CPU time of client and server for one
round trip.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import Rival
from common.errors import OffboardError

Row = dict[str, Any]

SIZES = (1_000, 10_000, 45_000, 150_000, 600_000)
CONCURRENCIES = (1, 32)

OURS = ("offboard", "offboard_executor", "offboard_ask", "offboard_asyncio", "offboard_blocking")
RIVALS: dict[str, tuple[str, ...]] = {
    "picows_ws": ("picows",),
    "picows_messages": ("picows",),
    "websockets_aio": ("websockets",),
    "zmq_aio": ("zmq",),
    "grpc_aio": ("grpc",),
    "http": ("uvicorn", "httptools", "aiohttp"),
}
"""Rivals, each with the modules it needs."""
SERVING: dict[str, tuple[str, ...]] = {
    "litserve_json": ("litserve", "aiohttp"),
    "ray_serve": ("ray.serve", "aiohttp"),
}
"""What people would use to serve a model, on a model that does nothing: a second, shorter run,
because their many processes also work while nobody asks."""

ALONE = {"offboard_blocking"}
"""One round trip at a time only."""

NOTES = "\n## Notes\n"


def label(name: str) -> str:
    """What a rival is and with which options: the LABEL of its file, without importing it."""
    text = (Path(__file__).parent / "rivals" / f"{name}.py").read_text()
    line = next(line for line in text.splitlines() if line.startswith("LABEL = "))
    return line.removeprefix("LABEL = ").strip('"')


def start(names: Sequence[str]) -> tuple[list[Rival], list[Row]]:
    """Start what is installed; a row with the error for what is not or does not start."""
    running: list[Rival] = []
    missing: list[Row] = []
    for name in names:
        needs = (RIVALS | SERVING).get(name, ())
        absent = [need for need in needs if importlib.util.find_spec(need.split(".")[0]) is None]
        try:
            if absent:
                raise OffboardError(f"not installed: {', '.join(absent)} (extra: bench)")
            running.append(Rival(name))
        except OffboardError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            missing.append({"bench": "transport", "config": name, "error": str(error)})
    return running, missing


def measure(
    rivals: Sequence[Rival], sizes: Sequence[int], rounds: int, seconds: float
) -> list[Row]:
    """One row per rival, size and concurrency. The first rival is the yardstick."""
    rows: list[Row] = []
    for size in sizes:
        for concurrency in CONCURRENCIES:
            taking = [r for r in rivals if concurrency == 1 or r.name not in ALONE]
            samples: dict[str, list[dict[str, Any]]] = {r.name: [] for r in taking}
            for number in range(rounds + 1):
                for rival in taking:
                    sample = rival.burst(size, concurrency, seconds)
                    if number:  # the first round warms up
                        samples[rival.name].append(sample)
            found = [row(n, size, concurrency, s, samples) for n, s in samples.items()]
            for each in found:
                print(line(each), flush=True)
            rows += found
    return rows


def row(
    name: str,
    size: int,
    concurrency: int,
    own: Sequence[dict[str, Any]],
    samples: dict[str, list[dict[str, Any]]],
) -> Row:
    """The medians of one rival, and of its ratios to the yardstick and to Offboard."""
    raw = next(iter(samples.values()))
    ours = samples.get("offboard", raw)

    def median(of: str) -> float:
        return statistics.median(figure(s, of) for s in own)

    def ratio(of: str, to: Sequence[dict[str, Any]]) -> float:
        pairs = zip(own, to, strict=True)
        return round(statistics.median(figure(a, of) / figure(b, of) for a, b in pairs), 3)

    return {
        "bench": "transport",
        "config": name,
        "link": "loopback",
        "n": sum(s["n"] for s in own),
        "bytes_up": size,
        "bytes_down": 200,
        "rounds": len(own),
        "p50_ms": round(median("p50_ms"), 4),
        "p95_ms": round(median("p95_ms"), 4),
        "throughput": round(median("rate"), 1),
        "size": size,
        "concurrency": concurrency,
        "cpu_ms": round(median("cpu") * 1e3, 5),
        "ratio_raw": ratio("p50_ms", raw),
        "ratio_raw_rate": ratio("rate", raw),
        "ratio_raw_cpu": ratio("cpu", raw),
        "ratio_offboard_rate": ratio("rate", ours),
        "ratio_offboard_cpu": ratio("cpu", ours),
    }


def figure(sample: dict[str, Any], of: str) -> float:
    """One figure of a Sample; "cpu" and "rate" are per round trip and per second."""
    if of == "rate":
        return float(sample["n"] / sample["seconds"])
    if of == "cpu":
        return float(sample["cpu"] / sample["n"])
    return float(sample[of])


def line(row: Row) -> str:
    """A row for the terminal."""
    return (
        f"{row['size']:>7} B x{row['concurrency']:<2} {row['config']:18}"
        f" {row['p50_ms'] * 1e3:9.1f} us {row['throughput']:9.0f}/s {row['cpu_ms'] * 1e3:8.1f} us"
        f"   raw x{row['ratio_raw']:.2f} rtt, x{row['ratio_raw_rate']:.2f} rate,"
        f" x{row['ratio_raw_cpu']:.2f} cpu"
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was promised, and whether this run kept it."""
    at = {(r["config"], r["size"], r["concurrency"]): r for r in rows if "size" in r}
    lines = []
    for config, size, most in (
        ("offboard", 45_000, 2.4), ("offboard", 600_000, 1.4),
        ("offboard", 45_000, 1.7), ("offboard", 600_000, 1.2),
        ("offboard_executor", 45_000, 4.5), ("offboard_executor", 600_000, 2.5),
    ):  # fmt: skip
        found = at.get((config, size, 1))
        if found is not None:
            kept = "kept" if found["ratio_raw"] <= most else "missed"
            aim = " (aim)" if (config, most) in (("offboard", 1.7), ("offboard", 1.2)) else ""
            lines.append(
                f"{kept}: {config} at {size} B: x{found['ratio_raw']:.2f} a raw round trip,"
                f" at most {most}{aim}"
            )
    for (config, size, concurrency), found in at.items():
        if config not in RIVALS or config == "picows_messages":
            continue
        if size < (45_000 if config == "picows_ws" else 10_000):
            continue
        rate, cpu = found["ratio_offboard_rate"], found["ratio_offboard_cpu"]
        if rate >= 1 or cpu <= 1:
            lines.append(
                f"missed: {config} at {size} B x{concurrency}: x{rate:.2f} our round trips/s,"
                f" x{cpu:.2f} our CPU"
            )
    return lines


def machine() -> str:
    """Where this was measured."""
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    return (
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()},"
        f" load average {load} (other work on the same cores included)"
    )


def markdown(rows: Sequence[Row], said: Sequence[str], command: str) -> str:
    """The whole result as a page."""
    head = ["size", "in flight", "config", "round trip us", "/s", "CPU us", "x raw rtt",
            "x raw rate", "x raw CPU"]  # fmt: skip
    parts = [
        "# Transport: Offboard beside raw sockets and the libraries\n",
        f"Made by `{command}` on {machine()}.\n",
        (__doc__ or "").split("\n\n")[2] + "\n",
        "\n".join(f"- `{n}`: {label(n)}" for n in dict.fromkeys(r["config"] for r in rows)) + "\n",
        "\n".join(f"- {text}" for text in said) + "\n",
        "| " + " | ".join(head) + " |\n|" + "---|" * len(head),
    ]
    parts += [f"| - | - | {r['config']} | {r['error']} ||||||" for r in rows if "error" in r]
    parts += [
        f"| {r['size']} | {r['concurrency']} | {r['config']} | {r['p50_ms'] * 1e3:.1f} |"
        f" {r['throughput']:.0f} | {r['cpu_ms'] * 1e3:.1f} | {r['ratio_raw']:.2f} |"
        f" {r['ratio_raw_rate']:.2f} | {r['ratio_raw_cpu']:.2f} |"
        for r in rows
        if "size" in r
    ]
    return "\n".join(parts) + "\n"


def publish(path: Path, page: str) -> None:
    """Write `page` to `path`; what was written by hand below an older one's table stays."""
    if path.exists():
        page += "".join(path.read_text().partition(NOTES)[1:])
    path.write_text(page)


def run(names: Sequence[str], sizes: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Start, measure and end `names`, raw sockets first."""
    if not names:
        return []
    rivals, missing = start(("raw", *names))
    try:
        return missing + measure(rivals, sizes, rounds, seconds)
    finally:
        for rival in rivals:
            rival.end()


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, rounds and rivals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="flat rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a page with the table")
    parser.add_argument("--only", metavar="NAME,...", help="of the rivals, only these")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else None
    names = [n for n in (*OURS, *RIVALS) if only is None or n in only]
    serving = [n for n in SERVING if only is None or n in only]
    # Many short bursts rather than few long ones: with many in flight a burst may fall into another
    # rhythm of waking and sleeping (docs/transport.md), and the medians are to hold all the same.
    rounds, seconds = (3, 0.1) if options.quick else (13, 0.08)
    rows = run(names, (10_000, 45_000) if options.quick else SIZES, rounds, seconds)
    if serving and not options.quick:
        # Their own run: raw sockets and Offboard are measured again beside them.
        rows += run(["offboard", *serving], (10_000, 150_000), 5, 0.4)
    said = verdicts(rows)
    print(machine(), *said, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.markdown:
        command = " ".join(["python -m bench.transport", *sys.argv[1:]])
        publish(options.markdown, markdown(rows, said, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
