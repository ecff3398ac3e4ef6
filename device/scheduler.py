"""Where to split a vision transformer and how much to merge: Janus's scheduler. Pure.

Janus, sections III-B to III-D. N layers; split s means that layers 1..s run on the device and the
rest on the server, 0 that all do there ("cloud only") and N + 1 that all run here, the classifier
included ("device only"). `algorithm1` is the paper's; `Scheduler` takes the same decision over
every alpha, split and precision of what is sent at once, and from what the frames before took.

The text of Algorithm 1 and of (3) is lost in places; they are read as follows. (3): next to 0 and
N + 1, s_1 = 1 and s_(i+1) = s_i + ceil(i / k) while <= N. Algorithm 1: for alpha upward from 0 the
split of least predicted latency; the first that meets the requirement is taken, and if none does,
alpha_max with its fastest split. To bytes / B the round trip is added, which the paper leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.merging import STEP, grid, remaining, schedule
from device.machine import Machine

F64 = npt.NDArray[np.float64]
K = 5
"""Fine-to-coarse: so many splits before the distance between them grows (section V-B)."""
SILENT = 1e9
"""Milliseconds per byte of a link that carries nothing: nobody waits for it."""
SAME = 1e-9
"""Losses that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer: its layers, and the tokens of a frame, class token included."""

    layers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Coding:
    """Bytes of tokens sent: `fixed` a frame and `token` each, sizes, scales and heads included.

    `ms`: the device's, to code one token; `loss`: what it costs in accuracy next to exact tokens,
    as the share of tokens whose merging costs as much. Of a frame sent as it is, it has no tokens:
    `fixed` bytes, `ms` for all of it.
    """

    name: str
    token: float = 0.0
    fixed: float = 0.0
    ms: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How to answer one frame, and what that is predicted to take, in milliseconds.

    `split`: see the module's text; `coding`: of what is sent, None if nothing is. `at`: the
    configuration's indices in `Costs`. `beside`: the device answers by itself from the start, too.
    """

    alpha: float
    split: int
    coding: str | None
    device_ms: float
    link_ms: float
    server_ms: float
    meets: bool
    at: tuple[int, int, int] = (0, 0, 0)
    beside: bool = False

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.device_ms + self.link_ms + self.server_ms


def split_points(layers: int, k: int = K) -> tuple[int, ...]:
    """Formula (3): candidates, fine in front and coarse behind, and both ends."""
    between, step = [1], 1
    while (following := between[-1] + -(-step // k)) <= layers:
        between.append(following)
        step += 1
    return (0, *between, layers + 1)


def algorithm1(
    shape: Shape,
    device: Machine,
    server: Machine,
    coding: Coding,
    frame: Coding,
    bandwidth: float,
    requirement: float,
    rtt: float = 0.0,
    k: int = K,
    step: float = STEP,
) -> Decision:
    """Janus's Algorithm 1, as printed. Both machines' latencies are their lines'.

    `bandwidth`: bytes per millisecond; `requirement`, `rtt`: ms. Coding takes no time.
    """
    splits = split_points(shape.layers, k)
    best: Decision | None = None
    for alpha in grid(shape.layers, shape.tokens, step):
        tokens = remaining(schedule(alpha, shape.layers, shape.tokens), shape.tokens)
        best = None
        for split in splits:
            here = there = link = 0.0
            if split > 0:
                here = device.first + sum(map(device.line, tokens[: min(split, shape.layers)]))
            if split <= shape.layers:
                size = coding.fixed + coding.token * tokens[split] if split else frame.fixed
                link = size / bandwidth + rtt
                there = sum(map(server.line, tokens[split:-1])) + server.last
                there += 0.0 if split else server.first
            else:
                here += device.last
            total = here + link + there
            name = None if split > shape.layers else coding.name if split else frame.name
            if best is None or total < best.total_ms:
                best = Decision(alpha, split, name, here, link, there, total <= requirement)
        assert best is not None
        if best.meets:
            return best
    assert best is not None
    return best


@dataclass(frozen=True)
class Costs:
    """What every configuration takes: axes alpha [A], split [S], coding [C].

    `device`, `server`: ms [A, S, C] and [A, S] of the machines as profiled; `size`: bytes
    [A, S, C]; `loss`: [A, S, C], the order of preference: the least that meets the requirement.
    `codings`, `frames`: how tokens are sent, and how frames are at split 0, [C] each.
    """

    alphas: tuple[float, ...]
    splits: tuple[int, ...]
    codings: tuple[Coding, ...]
    frames: tuple[Coding, ...]
    layers: int
    device: F64
    server: F64
    size: F64
    loss: F64

    @cached_property
    def remote(self) -> F64:
        """1.0 where the server takes part, [S]."""
        return np.array([float(split <= self.layers) for split in self.splits])

    def sends(self, split: int, coding: int) -> str | None:
        """The name of the coding [C] of what split [S] sends; None for nothing."""
        place = self.splits[split]
        if place > self.layers:
            return None
        return self.codings[coding].name if place else self.frames[coding].name


def costs(
    shape: Shape,
    device: Machine,
    server: Machine,
    codings: Sequence[Coding],
    frames: Sequence[Coding],
    *,
    splits: Sequence[int] | None = None,
    merges: Sequence[tuple[float, Sequence[int]]] | None = None,
    step: float = STEP,
    lines: bool = False,
) -> Costs:
    """The costs of all configurations, computed once per profile.

    `codings` of tokens and `frames`: as many, the one taken with the other. `splits`: all N + 2
    unless given; `merges`: (alpha, merges per layer) of every schedule, those of Janus unless
    given, alpha in steps of `step`. `lines`: the machines' lines alone, as in the paper, and not
    what was measured where these are bad. Tokens merged away are a loss of their mean share over
    the layers.
    """
    if splits is None:
        splits = range(shape.layers + 2)
    if merges is None:
        alphas = grid(shape.layers, shape.tokens, step)
        merges = [(alpha, schedule(alpha, shape.layers, shape.tokens)) for alpha in alphas]
    merged = np.array([each for _, each in merges])
    counts = np.array([remaining(each, shape.tokens) for _, each in merges])
    here, there = (
        machine.line(counts[:, :-1]) if lines else machine.layer(counts[:, :-1], merged)
        for machine in (device, server)
    )
    places = np.array(splits)
    ran = np.minimum(places, shape.layers)
    start = np.zeros((len(merges), 1))
    before = np.hstack((start, here.cumsum(axis=1)))
    after = np.hstack((there[:, ::-1].cumsum(axis=1)[:, ::-1], start))
    alone = places > shape.layers
    on_device = before[:, ran] + np.where(places > 0, device.first, 0.0)
    on_server = after[:, ran] + server.last + np.where(places > 0, 0.0, server.first)
    on_device = on_device + np.where(alone, device.last, 0.0)
    sent, whole = ((places > 0) & ~alone)[:, None], (places == 0)[:, None]

    def coded(of_tokens: F64, of_frame: F64) -> F64:
        """[A, S, C], zero where the device is alone."""
        chosen = np.where(sent, of_tokens, np.where(whole, of_frame, 0.0))
        return np.ascontiguousarray(chosen)  # so that the scheduler sees what changes in it

    fixed, token, ms, loss = np.array([[c.fixed, c.token, c.ms, c.loss] for c in codings]).T
    whole_size, whole_ms, whole_loss = np.array([[c.fixed, c.ms, c.loss] for c in frames]).T
    left = counts[:, ran, None]
    removed = 1.0 - counts[:, :-1].mean(axis=1) / shape.tokens
    return Costs(
        alphas=tuple(alpha for alpha, _ in merges),
        splits=tuple(splits),
        codings=tuple(codings),
        frames=tuple(frames),
        layers=shape.layers,
        device=on_device[:, :, None] + coded(left * ms, whole_ms),
        server=np.where(alone, 0.0, on_server),
        size=coded(fixed + left * token, whole_size),
        loss=removed[:, None, None] + coded(loss, whole_loss),
    )


@dataclass
class Scheduler:
    """Decides by `costs`. Per frame only the link, the load and the queue change.

    Of the configurations that meet the requirement the one of least loss is taken, and of those
    within `slack` of it the fastest; if none does, the fastest of all.
    """

    costs: Costs
    slack: float = SAME
    _device: F64 = field(init=False, repr=False)
    _server: F64 = field(init=False, repr=False)
    _remote: F64 = field(init=False, repr=False)
    _size: F64 = field(init=False, repr=False)
    _loss: F64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # One flat row a table: an operation on it takes a microsecond or two.
        whole = self.costs.size.shape
        self._device = self.costs.device.reshape(-1)
        self._server = np.broadcast_to(self.costs.server[:, :, None], whole).reshape(-1)
        self._remote = np.broadcast_to(self.costs.remote[:, None], whole).reshape(-1)
        self._size = self.costs.size.reshape(-1)
        self._loss = self.costs.loss.reshape(-1)

    def decide(
        self,
        throughput: float,
        requirement: float,
        rtt: float = 0.0,
        load: float = 1.0,
        speed: float = 1.0,
        queue: float = 0.0,
    ) -> Decision:
        """The configuration for the next frame.

        `throughput`: bytes per millisecond, 0 of a silent link; `requirement`, `rtt`, `queue`:
        milliseconds (inf: no requirement); `load`, `speed`: how many times as long as profiled the
        device's and the server's part take now.
        """
        slow = 1.0 / max(throughput, 1.0 / SILENT)
        total = self._device * load
        total += self._server * speed
        total += self._size * slow
        total += self._remote * (rtt + queue)
        meets = total <= requirement
        if meets.any():
            loss = np.where(meets, self._loss, np.inf)
            total[loss > loss.min() + self.slack] = np.inf
            return self._decision(int(total.argmin()), slow, rtt, load, speed, queue, True)
        return self._decision(int(total.argmin()), slow, rtt, load, speed, queue, False)

    def _decision(
        self,
        at: int,
        slow: float,
        rtt: float,
        load: float,
        speed: float,
        queue: float,
        meets: bool,
    ) -> Decision:
        alpha, split, coding = (int(i) for i in np.unravel_index(at, self.costs.size.shape))
        remote = self._remote[at]
        return Decision(
            alpha=self.costs.alphas[alpha],
            split=self.costs.splits[split],
            coding=self.costs.sends(split, coding),
            device_ms=float(self._device[at] * load),
            link_ms=float(self._size[at] * slow + remote * rtt),
            server_ms=float(self._server[at] * speed + remote * queue),
            meets=meets,
            at=(alpha, split, coding),
        )
