"""Janus and all it is compared with, replayed over measured uplinks: the paper's Fig. 7 to 9.

Layers take what they take here (`bench.machines`), scaled so that ViT-L@384 as a whole takes what
the paper's machines take: 653.3 ms on a Jetson Orin Nano and 32.3 ms on a V100 (Table I, no
pruning). `bench.accuracy` says where accuracy comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import accuracy
from bench.traces import Trace
from common.merging import fixed, remaining
from device.machine import Machine
from device.partition import LINKS
from device.scheduler import Coding, Costs, Shape, costs, split_points
from device.steering import LEVELS, LOSS, STEP
from profiles.replay import (
    Always,
    Frame,
    Harmonic,
    Oracle,
    Policy,
    Setting,
    Steered,
    Uplink,
    replay,
)

Row = dict[str, Any]
ORIN, V100 = 653.3, 32.3
"""Milliseconds of ViT-L@384, Table I."""
LZW, ZSTD, JPEG = 0.87, 0.78, {"jpeg-90": 0.100, "jpeg-75": 0.071, "jpeg-50": 0.055}
"""Coded bytes over raw ones, means over photographs of 224 x 224 (Imagenette, training)."""
VALUE = {"fp16": 2 * 0.925, "int8": 0.912}
"""zstd's bytes of a value of the photographs' tokens. LZW makes exact ones 1.235 times as large as
they are, so the paper's Janus sends them as they are."""
PUBLISHED = 1.556e6
"""Bytes of a frame that fit the paper's Fig. 9, where Cloud-Only meets 300 ms from 44 Mbps on:
nearer to the 1.77 MB of the frame's float32 values than to its 0.44 MB of pixels."""


@dataclass(frozen=True)
class Task:
    """What is recognised. `raw`: bytes of one input; `r`: the baselines' merges a layer.

    `best`, `merged`: published accuracy in percent of no merging and of `r`.
    """

    name: str
    shape: Shape
    dim: int
    raw: int
    requirement: float
    r: int
    best: float
    merged: float

    def accuracy(self, merged: float) -> float:
        """Percent, of a mean share of tokens merged away."""
        tokens = remaining(fixed(self.r, self.shape.layers, self.shape.tokens), self.shape.tokens)
        share = 1.0 - float(np.mean(tokens[:-1])) / self.shape.tokens
        return self.best - (self.best - self.merged) * merged / share


IMAGE = Task("image", Shape(24, 577), 1024, 384 * 384 * 3, 300.0, 23, 86.92, 86.14)
CLIP = Task("clip", Shape(24, 1569), 1024, 16 * 224 * 224 * 3, 600.0, 65, 0.0, -0.25)
"""Of clips points lost are told: ToMe publishes 0.2 to 0.3 of them for r = 65."""
MODELS = {"image": "vit_l_384", "clip": "vit_l_clip"}


@dataclass(frozen=True)
class World:
    """One task on the paper's machines. `slowed`: the factors that its measured layers take."""

    task: Task
    device: Machine
    server: Machine
    slowed: tuple[float, float]

    def ours(self, lossless: bool = False) -> Costs:
        """Every alpha, split and coding; frames as JPEG, or without loss."""
        task = self.task
        codings = [
            Coding(tokens, VALUE[tokens] * task.dim + 4, loss=LOSS[tokens]) for tokens, _ in LEVELS
        ]
        frames = [Coding(f, fixed=JPEG[f] * task.raw, ms=1.0, loss=LOSS[f]) for _, f in LEVELS]
        if lossless:
            codings, frames = codings[:2], [Coding("zstd", fixed=ZSTD * task.raw, ms=2.0)] * 2
        return costs(task.shape, self.device, self.server, codings, frames, step=STEP)

    def published(self) -> Costs:
        """The paper's Janus: lines, fine-to-coarse splits, exact tokens, LZW frames."""
        return costs(
            self.task.shape, self.device, self.server, [self.exact], [self.frame(LZW)],
            splits=split_points(self.task.shape.layers), lines=True,
        )  # fmt: skip

    def baseline(self, frame: Coding) -> Costs:
        """ToMe's fixed r, all splits."""
        shape = self.task.shape
        merges = [(0.0, fixed(self.task.r, shape.layers, shape.tokens))]
        return costs(shape, self.device, self.server, [self.exact], [frame], merges=merges)

    @property
    def exact(self) -> Coding:
        """Tokens as float32."""
        return Coding("fp32", 4.0 * self.task.dim + 4)

    def frame(self, ratio: float, name: str = "lzw") -> Coding:
        """A coded input, coding of which takes no time."""
        return Coding(name, fixed=ratio * self.task.raw)


def whole(machine: Machine, shape: Shape) -> float:
    """Milliseconds of a whole model that merges nothing."""
    return shape.layers * float(machine.layer(shape.tokens, 0)) + machine.first + machine.last


def worlds(
    machines: Mapping[str, Mapping[str, Machine]], tasks: Sequence[str] = ("image",)
) -> list[World]:
    """One per task; the factors are those of ViT-L@384, for clips as well."""
    image = machines[MODELS["image"]]
    slowed = (
        ORIN / whole(image["device"], IMAGE.shape),
        V100 / whole(image["server"], IMAGE.shape),
    )
    made = []
    for task in (IMAGE, CLIP):
        if task.name in tasks:
            sides = machines[MODELS[task.name]]
            device, server = (
                sides[side].scaled(factor)
                for side, factor in zip(("device", "server"), slowed, strict=True)
            )
            made.append(World(task, device, server, slowed))
    return made


Make = Callable[[float], Policy]
"""The throughput to begin with, bytes per millisecond -> a policy without a past."""
OURS, ORACLE, PAPER = "Janus, ours", "oracle", "Janus, published"
BASELINES = ("Device-Only", "Cloud-Only", "Mixed")
FIGURE9, CLOUD_JPEG, LOSSLESS = "Cloud-Only as in Fig. 9", "Cloud-Only, JPEG", "ours, lossless"
FIXED = (*BASELINES, FIGURE9, CLOUD_JPEG)
"""Those that merge ToMe's fixed r."""


def policies(world: World) -> dict[str, Make]:
    """Everything that is replayed, by name."""
    lzw, ours, exact = world.baseline(world.frame(LZW)), world.ours(), world.ours(lossless=True)
    big = world.baseline(Coding("lzw", fixed=PUBLISHED * world.task.raw / IMAGE.raw))
    jpeg = world.baseline(world.frame(JPEG["jpeg-90"], "jpeg-90"))
    oracle = Oracle(ours)
    published, alone = world.published(), world.task.shape.layers + 1
    return {
        BASELINES[0]: lambda prior: Always(lzw, alone),
        BASELINES[1]: lambda prior: Always(lzw, 0),
        FIGURE9: lambda prior: Always(big, 0),
        CLOUD_JPEG: lambda prior: Always(jpeg, 0),
        BASELINES[2]: lambda prior: Harmonic(lzw, fastest=True),
        PAPER: lambda prior: Harmonic(published),
        LOSSLESS: lambda prior: Steered(exact, prior),
        OURS: lambda prior: Steered(ours, prior),
        ORACLE: lambda prior: oracle,
    }


def scenario(name: str) -> str:
    """The scenario of a trace's file name: "5g-walking", or "mahimahi"."""
    first, second, *_ = f"{name}-".split("-")
    return first if first == "mahimahi" else f"{first}-{second}"


def setting(task: Task, name: str) -> Setting:
    """The round trip and the prior of a trace, those of the paper's 5G or 4G."""
    mbps, rtt = LINKS["5G" if name.startswith("5g") else "4G"]
    return Setting(rtt, task.requirement, mbps * 125.0)


def uplink(trace: Trace) -> Uplink:
    """A trace for the replay."""
    return Uplink([1e3 * t for t in (*trace.times, trace.length)], trace.mbps)


def replayed(world: World, make: Make, name: str, trace: Trace) -> list[Frame]:
    """The frames of one policy on one trace."""
    given = setting(world.task, name)
    return replay(make(given.prior), uplink(trace), given)


def row(world: World, method: str, group: str, runs: Sequence[Sequence[Frame]]) -> Row:
    """One line of a table, over the traces of a scenario."""
    frames = [frame for run in runs for frame in run]
    task, layers = world.task, world.task.shape.layers
    latency = np.array([frame.latency for frame in frames])
    predicted = np.array([frame.chosen.total_ms for frame in frames])
    seconds = sum(run[-1].start + run[-1].latency for run in runs) / 1e3
    error = np.abs(predicted - latency) / latency
    share = float(np.mean([accuracy.merged(frame) for frame in frames]))
    schedule = "fixed" if method in FIXED else "declining"
    places = np.array([frame.chosen.split for frame in frames])
    return {
        "bench": "janus",
        "task": task.name,
        "scenario": group,
        "method": method,
        "n": len(frames),
        "violations": float((latency > task.requirement + 1e-6).mean()),
        "throughput": len(frames) / seconds,
        "accuracy": task.accuracy(share) - accuracy.coded(frames),
        "own": -accuracy.own(frames, layers, schedule),
        "deviation": float((np.abs(latency - task.requirement) / task.requirement).mean()),
        "p50_ms": float(np.median(latency)),
        "p95_ms": float(np.percentile(latency, 95)),
        "bytes_up": float(np.mean([frame.size for frame in frames])),
        "predicted_p50": float(np.median(error)),
        "predicted_p95": float(np.percentile(error, 95)),
        "sent_whole": float((places == 0).mean()),
        "split": float(((places > 0) & (places <= layers)).mean()),
        "alone": float((places > layers).mean()),
        "gave_up": float(np.mean([frame.gave_up for frame in frames])),
    }
