"""Which works go together, and when. Pure: no clock, no thread, no I/O; `now` is an argument.

Works of one key wait in one lane, earliest deadline first. The accelerator asks `take` whenever
it is idle and gets the batch of the lane whose first work is most urgent, so batches form by
themselves out of what arrived while the previous one ran. A lane holds back for company only if
`max_wait` allows it, another source is in the habit of asking at about the same time, and the
tightest deadline leaves room for the predicted compute.

Urgency is `due`: the deadline, but never later than arrival + `PATIENCE`. Works without a deadline
thus age past any flood of urgent ones, within their lane and between lanes.

What is cancelled, past its deadline, or cannot end before it even alone, is never given to the
accelerator: `take` hands it back as dropped. Work that would end late only helps the link to be
late as well (goodput collapse under overload).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf
from typing import Generic, Protocol, TypeVar

PATIENCE = 1.0
"""Seconds after which a work without a deadline is as urgent as one that is due."""

FRESH = 1.0
"""Seconds for which an estimate may declare a work hopeless."""

LANES = 256
"""Lanes kept for their estimates although empty."""


class Waiting(Protocol):
    """What the batcher sees of a work. Times in seconds on the caller's clock.

    `source`: who asked (works of one source are no company for each other); `deadline` may be
    infinite; `cancelled` may turn true at any time.
    """

    key: Hashable
    source: Hashable
    arrived: float
    deadline: float
    cancelled: bool


W = TypeVar("W", bound=Waiting)


class Estimate:
    """Predicted compute of n works: a + b * n by least squares, old batches fading out."""

    __slots__ = ("_n", "_nn", "_nt", "_t", "_w", "one", "until")
    FADE = 0.9

    def __init__(self) -> None:
        self._w = self._n = self._t = self._nn = self._nt = 0.0
        self.one = 0.0
        """`seconds(1)`, ready made."""
        self.until = -inf
        """When it is too old to declare a work hopeless."""

    def observe(self, n: int, seconds: float, now: float) -> None:
        """A batch of `n` took `seconds` and ended at `now`."""
        fade = self.FADE
        self._w = self._w * fade + 1.0
        self._n = self._n * fade + n
        self._t = self._t * fade + seconds
        self._nn = self._nn * fade + n * n
        self._nt = self._nt * fade + n * seconds
        self.one = self.seconds(1)
        self.until = now + FRESH

    def seconds(self, n: int) -> float:
        """Predicted seconds for `n` works; 0 while nothing is known.

        Sizes never seen count as if batching gained nothing, so a first batch is not too bold.
        """
        if not self._w:
            return 0.0
        mean_n, mean_t = self._n / self._w, self._t / self._w
        spread = self._nn / self._w - mean_n * mean_n
        if spread < 0.1:
            return mean_t * n / mean_n
        slope = max(0.0, (self._nt / self._w - mean_n * mean_t) / spread)
        return max(mean_t / mean_n, mean_t + slope * (n - mean_n))


@dataclass(slots=True, eq=False)
class _Lane(Generic[W]):
    items: list[tuple[float, int, W]] = field(default_factory=list)
    estimate: Estimate = field(default_factory=Estimate)
    last_source: Hashable = None
    last_arrived: float = -inf
    company: float = 0.0


class Batcher(Generic[W]):
    """See the module's text. `max_wait`: seconds; `max_batch`: works."""

    def __init__(self, *, max_wait: float = 0.0, max_batch: int = 32) -> None:
        if max_wait < 0 or max_batch < 1:
            raise ValueError("max_wait must not be negative and max_batch at least 1")
        self.max_wait = max_wait
        self.max_batch = max_batch
        self._lanes: dict[Hashable, _Lane[W]] = {}
        self._busy: dict[Hashable, _Lane[W]] = {}
        self._count = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, work: W) -> None:
        """Queue `work` in the lane of its key."""
        lane = self._lanes.get(work.key)
        if lane is None:
            lane = self._open(work.key)
        if self.max_wait:
            self._note_company(lane, work)
        items = lane.items
        self._count += 1
        item = (min(work.deadline, work.arrived + PATIENCE), self._count, work)
        if items:
            insort(items, item)
        else:
            items.append(item)
            self._busy[work.key] = lane
        self._waiting += 1

    def take(self, now: float) -> tuple[list[W], list[W]]:
        """The batch to run now (empty: nothing is ready), and what is dropped, never to run."""
        batch: list[W] = []
        dropped: list[W] = []
        chosen: _Lane[W] | None = None
        due = inf
        for key, lane in list(self._busy.items()):
            items = lane.items
            while items and self._dead(lane, items[0][2], now):
                dropped.append(items.pop(0)[2])
            if not items:
                del self._busy[key]
            elif (chosen is None or items[0][0] < due) and self._start_by(lane) <= now:
                chosen, due = lane, items[0][0]
        if chosen is not None:
            self._fill(chosen, now, batch, dropped)
            if not chosen.items:
                del self._busy[batch[0].key]
        self._waiting -= len(batch) + len(dropped)
        return batch, dropped

    def wake(self) -> float | None:
        """When `take` has something to do next; None: not before the next `add`."""
        times = [
            min(self._start_by(lane), lane.items[0][2].deadline) for lane in self._busy.values()
        ]
        return min(times, default=None)

    def observe(self, key: Hashable, n: int, seconds: float, now: float) -> None:
        """A batch of `n` works of `key` took `seconds` on the accelerator and ended at `now`."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._open(key)
        lane.estimate.observe(n, seconds, now)

    def predicted(self, key: Hashable, n: int) -> float:
        """Seconds that a batch of `n` works of `key` should take; 0 while nothing is known."""
        lane = self._lanes.get(key)
        return lane.estimate.seconds(n) if lane else 0.0

    def clear(self) -> list[W]:
        """Empty every lane; returns what waited."""
        left = [item[2] for lane in self._busy.values() for item in lane.items]
        for lane in self._busy.values():
            lane.items.clear()
        self._busy.clear()
        self._waiting = 0
        return left

    def _open(self, key: Hashable) -> _Lane[W]:
        if len(self._lanes) >= LANES:  # keys follow what devices send: keep no more than these
            idle = next((k for k in self._lanes if k not in self._busy), None)
            if idle is not None:
                del self._lanes[idle]
        lane: _Lane[W] = _Lane()
        self._lanes[key] = lane
        return lane

    def _note_company(self, lane: _Lane[W], work: W) -> None:
        near = work.arrived - lane.last_arrived <= self.max_wait
        met = near and work.source != lane.last_source
        lane.company += (met - lane.company) / 8
        lane.last_source, lane.last_arrived = work.source, work.arrived

    def _start_by(self, lane: _Lane[W]) -> float:
        """When this lane's batch must start at the latest; -inf: at once."""
        waiting = len(lane.items)
        # Two devices that ask in step meet at every second arrival: half the weight counts.
        if not self.max_wait or waiting >= self.max_batch or lane.company < 0.25:
            return -inf
        oldest = min(item[2].arrived for item in lane.items)
        tightest = min(item[2].deadline for item in lane.items)
        return min(oldest + self.max_wait, tightest - lane.estimate.seconds(waiting))

    def _dead(self, lane: _Lane[W], work: W, now: float) -> bool:
        """Whether `work` is cancelled, late, or cannot end in time even alone."""
        deadline = work.deadline
        if work.cancelled or deadline <= now:
            return True
        estimate = lane.estimate
        # An old estimate may be wrong with nothing running that could correct it: no trust in it.
        return deadline < now + estimate.one and now < estimate.until

    def _fill(self, lane: _Lane[W], now: float, batch: list[W], dropped: list[W]) -> None:
        """Move works from the lane, whose head lives, into `batch` while all can end in time."""
        items = lane.items
        if len(items) == 1:
            batch.append(items.pop()[2])
            return
        tightest = inf
        used = 0
        for _, _, work in items:
            if len(batch) == self.max_batch:
                break
            if self._dead(lane, work, now):
                dropped.append(work)
            else:
                tightest = min(tightest, work.deadline)
                if batch and now + lane.estimate.seconds(len(batch) + 1) > tightest:
                    break
                batch.append(work)
            used += 1
        del items[:used]
