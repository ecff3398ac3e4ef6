"""Janus by the real pair: a server process, a device process, and a link replayed between them.

Both share this machine's cores, and layers take what they take here: nothing is scaled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import pair
from bench.link import Shape, running
from bench.scenarios import Row
from bench.traces import Trace
from common.errors import OffboardError
from common.profile import Profile

TOME = 13 * 12 / 197
"""Merges of the baselines in all layers, as a part of all tokens: ToMe's r = 13 of a ViT-B."""


def methods(layers: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Name -> settings of the strategy `janus`, for a model of so many layers and tokens."""
    merged = {"schedule": "fixed", "r": round(TOME * tokens / layers)}
    return {
        "Device-Only": {"split": layers + 1, **merged},
        "Cloud-Only": {"split": 0, "frame": "lzw", **merged},
        "Cloud-Only, JPEG": {"split": 0, "frame": "jpeg", **merged},
        "Mixed": {"split": "fastest", "frame": "lzw", "precision": "fp32", **merged},
        "Janus, ours": {"split": "auto"},
    }


def measure(
    profile: Profile,
    source: str,
    truth: Mapping[str, str],
    traces: Mapping[str, Trace],
    requirements: Sequence[float],
    rtt: float,
) -> Iterator[Row]:
    """A row per trace, requirement (ms) and method: every frame of `source`, one after another.

    `truth`: their labels by name; `rtt`: ms. Raises OffboardError if the profile's latencies were
    not measured.
    """
    params = profile.manifest.params("janus")
    if "latency" not in params:
        raise OffboardError(f"no latencies: ./run measure {profile.name}")
    every = methods(len(params["blocks"]), int(params["tokens"]))
    with pair.server(str(profile.directory)) as address:
        for name, trace in traces.items():
            for requirement in requirements:
                for method, settings in every.items():
                    with running(address, Shape(rtt=rtt, up=trace)) as through:
                        began = time.monotonic()
                        answers = pair.stream(
                            through, Path(source), "janus", settings, deadline_ms=requirement
                        )
                        seconds = time.monotonic() - began
                    truths = [truth[answer["frame"]] for answer in answers]
                    made = pair.summary(answers, truths, seconds=seconds, profile=profile.name)
                    yield made | predicted(answers) | {
                        "bench": "janus pair", "link": name, "method": method,
                        "requirement": requirement,
                        "throughput": len(answers) / (sum(a["latency_ms"] for a in answers) / 1e3),
                    }  # fmt: skip


def predicted(answers: Sequence[Row]) -> Row:
    """Errors of what was predicted, and what was chosen; None where nothing was."""
    told = [a for a in answers if a["predicted_ms"] is not None]
    if not told:
        return {"predicted_p50": None, "predicted_p95": None, "splits": None}
    errors = [abs(a["predicted_ms"] - a["latency_ms"]) / a["latency_ms"] for a in told]
    splits = [a["chosen"]["split"] for a in told]
    return {
        "predicted_p50": float(np.median(errors)),
        "predicted_p95": float(np.percentile(errors, 95)),
        "splits": {str(s): splits.count(s) for s in sorted(set(splits))},
        "finished_alone": sum(bool(a["degraded"]) for a in told),
    }


def table(rows: Sequence[Row]) -> str:
    """Every row."""
    lines = [
        "| link | requirement, ms | method | frames | violations | frames/s | top-1 | p50, p95 ms "
        "| kB up | predicted, median and p95 error | splits |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        error, chosen = "", ""
        if row["splits"]:
            error = f"{row['predicted_p50']:.0%}, {row['predicted_p95']:.0%}"
            chosen = ", ".join(f"{split}: {count}" for split, count in row["splits"].items())
        top1 = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        lines.append(
            f"| {row['link']} | {row['requirement']:.0f} | {row['method']} | {row['n']} "
            f"| {row['violations'] / row['n']:.1%} | {row['throughput']:.1f} | {top1} "
            f"| {row['p50_ms']:.0f}, {row['p95_ms']:.0f} | {row['bytes_up'] / 1e3:.1f} "
            f"| {error} | {chosen} |"
        )
    return "\n".join(lines)
