"""Replays a link under a split vision transformer: what each way of scheduling would have done.

Pure simulation in milliseconds. Frames follow one another without a pause. What is sent leaves by
the trace's rate of every moment, to the bit, behind what is still leaving; the layers take what
the machines' profiles say. Only the link is uncertain: of it a scheduler knows what came back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from device.link import SMALL, Link
from device.scheduler import Costs, Decision, Scheduler
from device.steering import SLACK, Steering

F64 = npt.NDArray[np.float64]
SEGMENT, HEADERS = 1448, 66
"""Bytes of the stream in one Ethernet frame, and around it (as bench/link.py)."""


class Uplink:
    """A trace: `ms` [n + 1] where its steps begin and end, `mbps` [n]. It starts again at the end.

    Raises ValueError for a trace that never carries anything.
    """

    def __init__(self, ms: Sequence[float], mbps: Sequence[float]) -> None:
        self.ms = np.asarray(ms, np.float64)
        self.mbps = np.asarray(mbps, np.float64)
        # Mbps are 125 bytes a millisecond.
        self._sent = np.concatenate(([0.0], np.cumsum(np.diff(self.ms) * self.mbps * 125.0)))
        if self._sent[-1] <= 0:
            raise ValueError("a trace that carries nothing")

    @property
    def length(self) -> float:
        """Milliseconds until the trace starts again."""
        return float(self.ms[-1])

    def carried(self, until: float | F64) -> F64:
        """Bytes that the link carries from 0 to `until`."""
        rounds, within = np.divmod(until, self.length)
        return np.asarray(rounds * self._sent[-1] + np.interp(within, self.ms, self._sent))

    def finish(self, start: float | F64, size: float | F64) -> F64:
        """When `size` bytes of the stream that begin to leave at `start` have left."""
        wire = np.asarray(size) * (1.0 + HEADERS / SEGMENT)
        target = self.carried(start) + wire
        rounds, within = np.divmod(target, self._sent[-1])
        # The first moment at which that many have left: an outage comes after it.
        at = np.clip(np.searchsorted(self._sent, within, side="left"), 1, len(self.mbps))
        before, rate = self._sent[at - 1], self.mbps[at - 1] * 125.0
        rest = np.divide(within - before, rate, out=np.zeros_like(within), where=rate > 0)
        left = rounds * self.length + self.ms[at - 1] + rest
        return np.where(wire > 0, np.maximum(left, start), start)

    def at(self, now: float) -> float:
        """Mbps at `now`."""
        place = int(np.searchsorted(self.ms, now % self.length, side="right")) - 1
        return float(self.mbps[min(place, len(self.mbps) - 1)])


@dataclass(frozen=True, slots=True)
class Setting:
    """What a replay is of: ms of a round trip and of the requirement.

    `prior`: bytes per millisecond of the profiled link that a policy begins with.
    """

    rtt: float
    requirement: float
    prior: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: when it began and what it took, in ms; what was chosen; its loss and bytes.

    `device`, `link`, `server`: of `latency`. `gave_up`: the device finished what it had sent.
    """

    start: float
    latency: float
    device: float
    link: float
    server: float
    chosen: Decision
    loss: float
    size: float = 0.0
    gave_up: bool = False


class Policy:
    """A way of scheduling, among the configurations of `costs`. Waits as long as it takes."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def choose(self, now: float, uplink: Uplink, setting: Setting) -> Decision:
        """The configuration of a frame that begins at `now`. Only an oracle looks ahead."""
        raise NotImplementedError

    def waits(self, chosen: Decision, setting: Setting) -> float:
        """Milliseconds for which the server's answer is waited for."""
        return math.inf

    def begins(self, chosen: Decision, setting: Setting) -> float:
        """When the device begins its own; asked only of one that does not wait for ever."""
        raise NotImplementedError

    def finishing(self, chosen: Decision, left: float) -> tuple[int, float]:
        """(index of alpha, ms) of that."""
        raise NotImplementedError

    def answered(self, now: float, size: float, took: float) -> None:
        """A transfer took so long, the server's time and the round trip taken out."""

    def gave_up(self, now: float, size: float, waited: float) -> None:
        """A transfer that was not waited for any longer."""


class Always(Policy):
    """One place, whatever the link: Device-Only and Cloud-Only. Of the first alpha and coding."""

    def __init__(self, costs: Costs, split: int) -> None:
        super().__init__(costs)
        self._split = costs.splits.index(split)

    def choose(self, now: float, uplink: Uplink, setting: Setting) -> Decision:
        """The same each time."""
        return decision(self.costs, (0, self._split, 0), setting.rtt, 1.0 / setting.prior)


class Harmonic(Policy):
    """By the harmonic mean of the last ten transfers (`device.link`): Mixed, and the paper's Janus.

    `fastest`: whatever is fastest, and not what meets the requirement at the least loss. Who sends
    nothing learns nothing; so as not to make these worse than published, after QUIET ms without a
    transfer they see what the link carried in the last WATCHED, as a monitor would.
    """

    QUIET, WATCHED = 300.0, 100.0

    def __init__(self, costs: Costs, fastest: bool = False) -> None:
        super().__init__(costs)
        self._scheduler = Scheduler(costs)
        self._fastest = fastest
        self._link = Link()
        self._seen = 0.0

    def choose(self, now: float, uplink: Uplink, setting: Setting) -> Decision:
        """The scheduler's decision at the harmonic mean."""
        if now - self._seen > self.QUIET:
            since = max(now - self.WATCHED, 0.0)
            # What is too little to tell a throughput counts as taking that much longer.
            carried = max(float(uplink.carried(now) - uplink.carried(since)), 1.0)
            size = max(carried, 2.0 * SMALL)
            self.answered(now, size, (now - since) * size / carried)
        known = self._link.throughput(now / 1e3)
        rate = setting.prior if known is None else known / 1e3
        wanted = -1.0 if self._fastest else setting.requirement
        return self._scheduler.decide(rate, wanted, setting.rtt)

    def answered(self, now: float, size: float, took: float) -> None:
        """One more for the mean."""
        self._seen = now
        self._link.record(now / 1e3, int(size), took / 1e3, rtt=0.0)


class Steered(Policy):
    """Ours, as the device runs it."""

    def __init__(self, costs: Costs, prior: float, slack: float = SLACK) -> None:
        super().__init__(costs)
        self._steering = Steering(costs, prior, slack)
        self.finishing = self._steering.finishing  # type: ignore[method-assign]
        self.answered = self._steering.answered  # type: ignore[method-assign]
        self.gave_up = self._steering.gave_up  # type: ignore[method-assign]

    def choose(self, now: float, uplink: Uplink, setting: Setting) -> Decision:
        """As `device.steering` decides."""
        return self._steering.decide(now, setting.requirement, setting.rtt)

    def waits(self, chosen: Decision, setting: Setting) -> float:
        """As the device waits."""
        return self._steering.waits(chosen, setting.requirement)

    def begins(self, chosen: Decision, setting: Setting) -> float:
        """As the device begins."""
        return self._steering.begins(chosen, setting.requirement)


class Oracle(Policy):
    """Knows the trace: of what will meet the requirement the scheduler's choice, else the fastest.

    It decides for each frame by itself, as the others do.
    """

    def __init__(self, costs: Costs, slack: float = SLACK) -> None:
        super().__init__(costs)
        self._slack = slack
        server = np.broadcast_to(costs.server[:, :, None], costs.size.shape)
        away = np.broadcast_to(costs.remote[:, None], costs.size.shape)
        tables = (costs.device, server, costs.size, costs.loss, away)
        flat = np.stack([each.reshape(-1) for each in tables])
        self._kept = undominated(flat)
        self._device, self._server, self._size, self._loss, self._away = flat[:, self._kept]

    def choose(self, now: float, uplink: Uplink, setting: Setting) -> Decision:
        """The best of what will happen."""
        given = now + self._device
        left = uplink.finish(given, self._size)
        total = self._device + self._server
        total += self._away * (left - given + setting.rtt)
        meets = total <= setting.requirement
        among = total
        if meets.any():
            loss = np.where(meets, self._loss, np.inf)
            among = np.where(loss > loss.min() + self._slack, np.inf, total)
        best = int(among.argmin())
        at = np.unravel_index(int(self._kept[best]), self.costs.size.shape)
        made = decision(self.costs, (int(at[0]), int(at[1]), int(at[2])), 0.0, 0.0)
        link = float(total[best]) - made.device_ms - made.server_ms
        return replace(made, link_ms=link, meets=bool(meets.any()))


def undominated(costs: F64) -> npt.NDArray[np.intp]:
    """Which columns of [k, n] no other one, or an equal one before, is at most in all k rows."""
    kept: list[int] = []
    best = np.empty_like(costs)
    # A column that is at most another in every row stands before it.
    for column in np.lexsort(costs[::-1]):
        if not (best[:, : len(kept)] <= costs[:, column, None]).all(axis=0).any():
            best[:, len(kept)] = costs[:, column]
            kept.append(int(column))
    return np.sort(np.array(kept))


def decision(costs: Costs, at: tuple[int, int, int], rtt: float, slow: float) -> Decision:
    """The configuration at `at`, predicted for a link of `slow` ms a byte."""
    alpha, split, coding = at
    link = float(costs.size[at]) * slow + float(costs.remote[split]) * rtt
    return Decision(
        costs.alphas[alpha], costs.splits[split], costs.sends(split, coding),
        float(costs.device[at]), link, float(costs.server[alpha, split]), True, at,
    )  # fmt: skip


def replay(policy: Policy, uplink: Uplink, setting: Setting) -> list[Frame]:
    """Frames one after another from the trace's start to its end; the last may outlast it.

    What is sent waits for what left before, also for what nobody waits for any longer.
    """
    frames: list[Frame] = []
    now = free = 0.0
    while now < uplink.length:
        chosen = policy.choose(now, uplink, setting)
        frame, free = _frame(policy, uplink, setting, chosen, now, free)
        frames.append(frame)
        now += frame.latency
    return frames


def _frame(
    policy: Policy, uplink: Uplink, setting: Setting, chosen: Decision, now: float, free: float
) -> tuple[Frame, float]:
    costs, (alpha, split, _) = policy.costs, chosen.at
    device, size = float(costs.device[chosen.at]), float(costs.size[chosen.at])
    loss, server = float(costs.loss[chosen.at]), float(costs.server[alpha, split])
    if not costs.remote[split]:
        return Frame(now, device, device, 0.0, 0.0, chosen, loss), free
    given = now + device
    free = float(uplink.finish(max(given, free), size))
    link = free - given + setting.rtt
    latency = device + link + server
    waited = policy.waits(chosen, setting)
    if latency <= waited:
        policy.answered(now + latency, size, link - setting.rtt)
        return Frame(now, latency, device, link, server, chosen, loss, size), free
    began = policy.begins(chosen, setting)
    again, rest = policy.finishing(chosen, setting.requirement - began)
    alone = float(costs.loss[again, len(costs.splits) - 1, 0])
    policy.gave_up(now + waited, size, waited - device)
    own = device + rest
    return Frame(now, began + rest, own, began - device, 0.0, chosen, alone, size, True), free
