"""From frame to frame: what Janus's scheduler is told of the link and of both machines. Pure.

Four things beyond the paper's harmonic mean, each kept because it won in replay (`bench janus`):

- The next transfer is predicted by the last. A plan that leaves the device no time to answer by
  itself, should the link fail it, must hold at the slowest of the last TRANSFERS, too.
- Under a plan that leaves it that time the device answers the frame by itself (`finishing`) beside
  the server once only that time is left (`begins`): a wrong forecast costs no violation, and what
  comes later than forecast but before the device's own answer is not lost.
- A device that sends nothing learns nothing. What is expected of a link that was slow doubles every
  DOUBLE ms: to what the profiled link has, and after a long silence beyond. So it is tried again,
  little first.
- As long as what was sent last was given up, a try costs no time: the device begins its own answer
  at once (`beside`).

Milliseconds and bytes throughout; `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median_low

import numpy as np

from device.measured import Measured
from device.scheduler import Costs, Decision, Scheduler, costs

SLACK = 0.06
"""Losses that differ by less are one, so the fastest is taken: as what a twentieth of all tokens
merged costs, 0.1 points of ViT-L@384 by ToMe's published figures."""
STEP = 0.002
"""Alpha's, a fifth of the paper's: a device that must answer alone uses all the time it has."""
TRANSFERS = 5
DOUBLE = 1200.0
FRESH = 4.0
"""Times DOUBLE for which a link that was as fast as profiled is taken to stay as it was."""
ARRIVED = 0.7
"""Of what was given up so much is taken to have arrived."""
LIMIT = 16.0
"""Doublings at most: no link is faster."""
RUNS = 5
"""Runs whose median tells the load of the device and of the server."""
LEVELS = (("fp16", "jpeg-90"), ("int8", "jpeg-75"), ("int8", "jpeg-50"))
"""How tokens are sent, and frames: the better the level, the more bytes."""
LOSS = {"fp16": 0.0, "int8": 0.03, "jpeg-90": 0.0, "jpeg-75": 0.03, "jpeg-50": 1.0}
"""What that costs in accuracy, as the share of tokens whose merging costs as much: next to nothing,
or more than any merging. Of photographs held out of training JPEG 90 and 75 cost as little, 0.8
points with an error of 0.6, and JPEG 50 5.6 points with one of 1.7 (`profiles.merged`)."""
LEARNED = 0.2
"""Weight of the last frame in how large frames are."""


@dataclass
class Steering:
    """Decides frame after frame. `prior`: bytes per millisecond of a profiled link."""

    costs: Costs
    prior: float
    slack: float = SLACK
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=TRANSFERS))
    _seen: float = 0.0
    _failed: bool = False
    _heads: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=RUNS))
    _tails: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=RUNS))
    _queues: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=RUNS))

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(self.costs, self.slack)

    def decide(self, now: float, requirement: float, rtt: float) -> Decision:
        """The configuration of the frame that begins at `now`, in ms as predicted."""
        rate = self._rates[-1] if self._rates else self.prior
        quiet = (now - self._seen) / DOUBLE
        if rate < self.prior:
            rate = min(self.prior, rate * 2.0**quiet)
        rate *= 2.0 ** min(max(0.0, quiet - FRESH), LIMIT)
        chosen = self._at(rate, requirement, rtt)
        if not self._sends(chosen):
            return chosen
        if self._failed:
            return self._try(chosen, rate, requirement, rtt)
        if chosen.device_ms <= self._latest(chosen, requirement):
            return chosen
        return self._at(min(rate, min(self._rates, default=rate)), requirement, rtt)

    def begins(self, chosen: Decision, requirement: float) -> float:
        """Milliseconds from the frame's beginning after which the device answers it by itself, too.

        When it needs what is left of the requirement, or at once beside a try. If it has no time
        for both, when the server's answer is not waited for any longer.
        """
        if chosen.beside:
            return chosen.device_ms
        latest = self._latest(chosen, requirement)
        return latest if chosen.device_ms <= latest else self.waits(chosen, requirement)

    def waits(self, chosen: Decision, requirement: float) -> float:
        """Milliseconds from the frame's beginning for which the server's answer is waited for."""
        if chosen.beside:
            return self._alone(chosen, requirement)
        return max(requirement, chosen.device_ms)

    def finishing(self, chosen: Decision, left: float) -> tuple[int, float]:
        """(index of alpha, ms) with which the device answers by itself, having run its part.

        Behind a layer it goes on with what was to merge on the server. A frame that was sent whole
        it begins anew, as the scheduler would with `left` ms to the requirement.
        """
        alpha, split, coding = chosen.at
        alone = len(self.costs.splits) - 1
        if chosen.split > 0:
            ran = self.costs.device[alpha, split, coding]
            rest = float(self.costs.device[alpha, alone, 0] - ran) * self.load
            return alpha, max(0.0, rest)
        times = self.costs.device[:, alone, 0] * self.load
        loss = np.where(times <= left, self.costs.loss[:, alone, 0], np.inf)
        if not np.isinf(loss.min()):
            times = np.where(loss <= loss.min() + self.slack, times, np.inf)
        best = int(times.argmin())
        return best, float(times[best])

    def answered(self, now: float, size: float, took: float) -> None:
        """A transfer of `size` bytes took so long, the server's time and the round trip taken out.

        Its answer came back at `now`.
        """
        self._heard(now, size, took)
        self._failed = False

    def gave_up(self, now: float, size: float, waited: float) -> None:
        """So long after `size` bytes were sent their answer was not back."""
        self._heard(now, ARRIVED * size, waited)
        self._failed = True

    def framed(self, chosen: Decision, size: float) -> None:
        """A frame sent whole took `size` bytes: others are taken to differ from profiled alike."""
        sizes = self.costs.size[:, self.costs.splits.index(0)]
        sizes *= 1.0 - LEARNED + LEARNED * size / float(self.costs.size[chosen.at])

    def ran(self, predicted: float, took: float) -> None:
        """The device's part took so long, as profiled and measured."""
        self._heads.append(took / max(predicted, 1e-3))

    def served(self, predicted: float, took: float, queued: float) -> None:
        """The server's part, waiting not counted, and how long it waited."""
        self._tails.append(took / max(predicted, 1e-3))
        self._queues.append(queued)

    @property
    def load(self) -> float:
        """How many times as long as profiled the device's part takes."""
        return _recent(self._heads)

    @property
    def speed(self) -> float:
        """How many times as long as profiled the server's part takes."""
        return _recent(self._tails)

    @property
    def queue(self) -> float:
        """Milliseconds that the server lets a query wait."""
        return _recent(self._queues)

    def _heard(self, now: float, size: float, took: float) -> None:
        self._rates.append(size / max(took, 0.01))
        self._seen = now

    def _try(self, chosen: Decision, rate: float, requirement: float, rtt: float) -> Decision:
        """What is back before the device's own answer, and that in time; else the device alone."""
        alone = self._alone(chosen, requirement)
        if chosen.total_ms > alone:
            chosen = self._at(rate, alone, rtt)
            alone = self._alone(chosen, requirement)
        if self._sends(chosen) and chosen.total_ms <= alone <= requirement:
            return replace(chosen, beside=True)
        return self._at(0.0, requirement, rtt)

    def _alone(self, chosen: Decision, requirement: float) -> float:
        """When the device's own answer is there, if it goes on when it has sent what it sends."""
        return chosen.device_ms + self.finishing(chosen, requirement - chosen.device_ms)[1]

    def _at(self, rate: float, requirement: float, rtt: float) -> Decision:
        return self._scheduler.decide(
            rate, requirement, rtt, load=self.load, speed=self.speed, queue=self.queue
        )

    def _sends(self, chosen: Decision) -> bool:
        return chosen.split <= self.costs.layers

    def _latest(self, chosen: Decision, requirement: float) -> float:
        """When the device has to begin an answer of its own, to have it in time."""
        return requirement - self.finishing(chosen, 0.0)[1]


def _recent(values: Iterable[float]) -> float:
    # Of two the lower: the first run opens sessions, which is no load.
    return median_low(values)


def of_profile(measured: Measured, prior: float) -> Steering:
    """The steering of what was measured. Raises ConfigError: not all of LEVELS was."""
    pairs = (measured.sent(*level) for level in LEVELS)
    codings, frames = (
        [replace(coding, loss=LOSS[coding.name]) for coding in kind]
        for kind in zip(*pairs, strict=True)
    )
    made = costs(measured.shape, measured.device, measured.server, codings, frames, step=STEP)
    return Steering(made, prior)
