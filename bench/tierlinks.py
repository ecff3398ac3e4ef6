"""DIMEC-DC and DIMEE through three real processes: what samples cost in time and bytes on links.

Device, edge and cloud are processes of their own; `bench.link` shapes both ways between them. One
sample is out at a time, as the papers have it, and each process computes on one thread. They run
before everything else on this machine, where that is permitted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench import pair
from bench.link import Shape, running
from common.errors import OffboardError
from common.profile import Profile

T = TypeVar("T")
STRATEGIES = ("dimec", "dimee")
WAN = Shape(50.0, 30.0)
"""Between edge and cloud: the next data centre."""
LINKS: Mapping[str, tuple[Shape, Shape] | None] = {
    "open": None,
    "wifi": (Shape(37.68, 2.3), WAN),
    "4g": (Shape(7.6, 42.2), WAN),
}
"""From device to edge, as measured for A-MOT's paper, and on to the cloud. "open": loopback."""
WAYS: Mapping[str, Mapping[str, str]] = {
    "device alone": {"route": "mobile"},
    "edge alone": {"route": "edge", "send": "input"},
    "edge alone, hidden state": {"route": "edge", "send": "hidden"},
    "cloud alone": {"route": "cloud", "send": "input"},
    "cloud alone, hidden state": {"route": "cloud", "send": "hidden"},
    "Ours-F": {"route": "nearest", "pools": "fixed", "send": "input"},
    "Ours-D": {"route": "nearest", "pools": "adaptive", "send": "input"},
    "scores": {"route": "scores", "send": "input"},
}
"""What a sample's way is decided by, and what travels where it leaves."""
SOURCES = ("device", "edge", "cloud")
PATIENCE = 60.0
SEED = 0
"""Of the order in which pictures come."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What a device is given: a source, and the class of each of its samples."""

    source: Path
    truths: tuple[str | None, ...]


def samples(profile: Profile, data: Path, count: int | None, scratch: Path) -> Samples:
    """Evenly spaced `count` (None: all) labelled samples of `data`: a table, a folder, a tar file.

    A table has a line above and then a sentence, a tab and a label's number in each line. Pictures
    lie class by class, and come in random order. Raises OffboardError where there is no sample,
    ValueError for a table that is none.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    if data.suffix == ".tsv":
        header, *lines = data.read_text().splitlines()
        few = spaced(lines, count)
        table = scratch / "samples.tsv"
        table.write_text("\n".join([header, *few]) + "\n")
        classes = profile.manifest.classes
        return Samples(table, tuple(classes[int(line.rpartition("\t")[2])] for line in few))
    source = pair.extracted(data, "val")
    found = pair.pictures(source)
    if not found:
        raise OffboardError(f"no samples below {data}")
    folder = scratch / "pictures"
    for place, path in enumerate(found[each] for each in shuffled(len(found), count)):
        link = folder / f"{place:05}" / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return Samples(folder, tuple(pair.truth(path) for path in pair.pictures(folder)))


def spaced(every: Sequence[T], count: int | None) -> Sequence[T]:
    """Evenly spaced `count` of them, in order; all where there are no more."""
    if count is None or count >= len(every):
        return every
    return [every[at * len(every) // count] for at in range(count)]


def shuffled(total: int, count: int | None) -> list[int]:
    """Places of evenly spaced `count` of `total` (None: all), in an order of SEED."""
    few = np.array(spaced(range(total), count))
    return [int(place) for place in np.random.default_rng(SEED).permutation(few)]


def measure(
    profile: Profile,
    given: Samples,
    link: str,
    ways: Mapping[str, Mapping[str, str]],
    strategies: Sequence[str],
) -> Iterator[pair.Row]:
    """A row for each of `strategies` and each of `ways`, on `link` of LINKS.

    Every row starts from the profile's own pools: what a device adapted before is not used.
    """
    with _first(), _three(str(profile.directory), LINKS[link]) as (address, metrics):
        for strategy in strategies:
            for way, settings in ways.items():
                with _own_cache():
                    before = _counted(metrics)
                    answers = pair.stream(address, given.source, strategy, settings)
                    after = _counted(metrics)
                row = pair.summary(answers, given.truths, bench="tiers", profile=profile.name)
                row |= {"link": link, "strategy": strategy, "way": way, "config": _text(settings)}
                row |= {"degraded": sum(a["degraded"] is not None for a in answers)}
                row |= {key: (after[key] - before[key]) / len(answers) for key in after}
                for source in SOURCES:
                    taken = [a["latency_ms"] for a in answers if a["source"] == source]
                    row[f"{source}_share"] = len(taken) / len(answers)
                    row[f"{source}_p50_ms"] = statistics.median(taken) if taken else None
                yield row


@contextlib.contextmanager
def _first() -> Iterator[None]:
    """This process and those that it starts run before all others, or as ever."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)


def _text(settings: Mapping[str, str]) -> str:
    """Settings as the device's --set takes them."""
    return ",".join(f"{key}={value}" for key, value in settings.items())


@contextlib.contextmanager
def _three(profile: str, shapes: tuple[Shape, Shape] | None) -> Iterator[tuple[str, str]]:
    """An edge and its cloud; yields where a device connects, and where the edge's metrics are."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(pair.server(profile, "--threads", "1"))
        if shapes is not None:
            cloud = stack.enter_context(running(cloud, shapes[1]))
        flags = ("--threads", "1", "--cloud", cloud, "--metrics", metrics)
        edge = stack.enter_context(pair.server(profile, *flags))
        if shapes is not None:
            edge = stack.enter_context(running(edge, shapes[0]))
        end = time.monotonic() + PATIENCE
        while ": connected" not in (health := _get(metrics, "healthz")):
            if time.monotonic() > end:
                raise OffboardError(f"the edge does not reach its cloud: {health}")
            time.sleep(0.1)
        yield edge, metrics


def _get(metrics: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{metrics}/{path}", timeout=10) as reply:
        return str(reply.read().decode())


def _counted(metrics: str) -> dict[str, float]:
    """Bytes between edge and cloud so far, both ways."""
    shown = dict(
        line.split(" ") for line in _get(metrics, "metrics").splitlines() if "#" not in line
    )
    return {
        "cloud_bytes_up": float(shown["offboard_cloud_bytes_up_total"]),
        "cloud_bytes_down": float(shown["offboard_cloud_bytes_down_total"]),
    }


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Devices started in here know no bundle and no adapted pools."""
    before = os.environ.get("OFFBOARD_CACHE")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["OFFBOARD_CACHE"] = scratch
        try:
            yield
        finally:
            if before is None:
                del os.environ["OFFBOARD_CACHE"]
            else:
                os.environ["OFFBOARD_CACHE"] = before


def table(rows: Sequence[pair.Row]) -> str:
    """Accuracy, shares, bytes and times of every way, a table for each strategy and link."""
    parts = []
    for strategy, link in dict.fromkeys((row["strategy"], row["link"]) for row in rows):
        found = [row for row in rows if (row["strategy"], row["link"]) == (strategy, link)]
        parts.append(
            f"{strategy}, link {link}, {found[0]['n']} samples\n\n"
            "| way | accuracy | device / edge / cloud | bytes to edge, back | to cloud, back "
            "| median ms | 95 % ms | device CPU ms | median ms by tier |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n" + "\n".join(map(_line, found))
        )
    return "\n\n".join(parts)


def _line(row: pair.Row) -> str:
    accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    shares = " / ".join(f"{row[f'{source}_share']:.0%}" for source in SOURCES)
    each = [row[f"{source}_p50_ms"] for source in SOURCES]
    times = " / ".join("-" if ms is None else f"{ms:.1f}" for ms in each)
    return (
        f"| {row['way']} | {accuracy} | {shares} | {row['bytes_up']:.0f}, {row['bytes_down']:.0f} "
        f"| {row['cloud_bytes_up']:.0f}, {row['cloud_bytes_down']:.0f} | {row['p50_ms']:.1f} "
        f"| {row['p95_ms']:.1f} | {row['device_ms']:.2f} | {times} |"
    )
