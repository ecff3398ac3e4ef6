"""What second rounds may cost. Pure: `now` is an argument.

Three things bound what a frame may ask for, and the tightest holds: a mean cost per frame
(`Window`), bytes per second of all devices together (`Bucket`), and what its own device can still
carry in time (`Ask.afford`). The first two are accounts, filled first and spent from later, so that
what easy frames save pays for hard ones. `Allowance` puts them together.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from server.slo import Ints, Table, solve

FRAMES = 256
"""Frames that a window looks back on."""
BURST = 1.0
"""Seconds' worth of bytes that a bucket holds at most."""
WINDOWS = 64
"""Windows kept: devices of one profile differ little in what they ask."""
HEAD = 100
"""Bytes of a query's packet beside its tensors, about."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the frames of one window have in common.

    `sent` of `total` patches came in round one; a frame at `threshold` or above needs no more.
    `budget`: the mean cost of a frame, both rounds, in patches or, `in_bytes`, in bytes; None:
    there is none. `objective`: "weighted" or "printed" (see `slo.solve`), or "fixed": every frame
    that needs more is given `r2`, a ratio of `total`. `scale`: the bytes of a patch of round two
    beside those of one of round one.
    """

    sent: int
    total: int
    threshold: float
    r2: float
    objective: str = "fixed"
    budget: float | None = None
    in_bytes: bool = False
    scale: float = 1.0

    @property
    def fixed(self) -> int:
        """`r2` in patches, no more than are missing."""
        return min(round(self.r2 * self.total), self.total - self.sent)


@dataclass(frozen=True, slots=True)
class Ask:
    """One frame after round one, whose packet had `size` bytes.

    `afford`: bytes that round two may have for its device's sake.
    """

    terms: Terms
    size: int
    afford: float = inf

    @property
    def patch(self) -> float:
        """Bytes that a patch of round two will have, going by those of round one."""
        return (self.size - HEAD) / self.terms.sent * self.terms.scale


@dataclass(frozen=True, slots=True)
class Promise:
    """What a frame was allowed: `extra` patches, in a packet of about `size` bytes.

    `window`: the one whose balance of bytes paid `cost` for it, if any.
    """

    extra: int
    size: float = 0.0
    window: Window | None = None
    cost: float = 0.0


class Window:
    """Frames under one mean budget: the last ones seen, and what they left of it.

    Which second ratio an interval of confidence gets is solved for the last `FRAMES` frames and
    what their budget leaves, so one frame at a time is served as a whole batch would be. Until so
    many were seen, the calibration's own frames stand in for the missing ones.

    The balance holds what was saved or owed, at most a whole window's; it is part of what is solved
    for, and no frame gets what would overdraw it by more than the cost of one frame. So over any
    number of frames from the first on, the mean cost is the budget at most, but for one frame,
    unless the first rounds alone are dearer.
    """

    def __init__(self, terms: Terms, table: Table | None) -> None:
        """`table` None: the objective is "fixed"."""
        self._terms = terms
        self._table = table
        self._budget = terms.total if terms.budget is None else terms.budget
        self._head, self._scale = (HEAD, terms.scale) if terms.in_bytes else (0, 1.0)
        self._patch = self._scale
        self._seen: deque[tuple[int, float]] = deque(maxlen=FRAMES)
        self.balance = 0.0
        """What is left of the budget of all frames so far; below zero: overdrawn."""

    def decide(
        self, confidences: Sequence[float], firsts: Sequence[float], most: Sequence[int]
    ) -> list[int]:
        """How many patches each frame of a batch may ask for, by the confidence of round one.

        `firsts`: what round one of each cost, in the budget's unit. `most`: no more than so many.
        """
        terms = self._terms
        places = [self._place(confidence) for confidence in confidences]
        self._seen.extend(zip(places, firsts, strict=True))
        mean = sum(first for _, first in self._seen) / len(self._seen)
        self._patch = (mean - self._head) / terms.sent * self._scale
        whole = self.cost(terms.total)
        spare = self._budget - mean
        extras = self._solve(spare)
        decided = []
        for place, first, limit in zip(places, firsts, most, strict=True):
            saved = min(self.balance + self._budget - first, FRAMES * max(spare, 0.0))
            self.balance = max(saved, -FRAMES * self._budget)
            extra = 0
            if place >= 0:
                left = self.balance + whole - self._head
                extra = max(0, min(extras[place], limit, int(left / self._patch)))
            self.balance -= self.cost(extra)
            decided.append(extra)
        return decided

    def cost(self, extra: int) -> float:
        """What a second round of `extra` patches costs, as far as one can tell."""
        return extra * self._patch + self._head if extra else 0.0

    def _place(self, confidence: float) -> int:
        """The interval of `confidence`; -1: it needs no more."""
        if confidence >= self._terms.threshold:
            return -1
        return 0 if self._table is None else self._table.interval(confidence)

    def _solve(self, spare: float) -> list[int]:
        """Patches for each interval, if round one leaves `spare` of a frame's budget."""
        terms, table = self._terms, self._table
        if table is None or terms.objective == "fixed":
            return [terms.fixed] * (1 if table is None else len(table.edges) - 1)
        found = table.at(terms.sent / terms.total)
        seen = [place for place, _ in self._seen if place >= 0]
        counts = np.bincount(seen, minlength=len(found.counts)).astype(np.float64)
        missing = FRAMES - len(self._seen)
        if missing and (frames := found.counts.sum()):
            counts += found.counts * table.below(terms.threshold) * (missing / frames)
        patches = steps(table, terms)
        costs = patches * self._patch + np.where(patches > 0, self._head, 0)
        budget = FRAMES * spare + self.balance
        weighted = terms.objective == "weighted"
        chosen = solve(found.p, counts, costs, budget, weighted=weighted)
        return [int(extra) for extra in patches[chosen]]


def steps(table: Table, terms: Terms) -> Ints:
    """The table's second ratios [R] in patches, no more than are missing."""
    patches = np.rint(table.ratios * terms.total).astype(np.intp)
    return np.minimum(patches, terms.total - terms.sent)


class Bucket:
    """Bytes per second that all devices of a server share: a token bucket.

    `received` tells how many bytes have come in since ever; all of them are charged. What a second
    round was promised is held back until it has come.
    """

    def __init__(self, rate: float, received: Callable[[], int], now: float) -> None:
        self._rate = rate
        self._received = received
        self._charged = received()
        self._level = self._most = rate * BURST
        self._then = now

    def left(self, now: float) -> float:
        """Bytes that may be asked for; none while it is overdrawn."""
        received = self._received()
        level = self._level + (now - self._then) * self._rate
        level = min(level, self._most) - (received - self._charged)
        self._level = max(level, -self._most)
        self._then, self._charged = now, received
        return max(0.0, self._level)

    def hold(self, size: float) -> None:
        """Promise `size` bytes; negative: what was promised has come."""
        self._level -= size


class Allowance:
    """Who may ask for how much: all that bounds the second rounds of one strategy."""

    def __init__(self, table: Table | None, bucket: Bucket | None) -> None:
        self._table = table
        self._bucket = bucket
        self._windows: OrderedDict[Terms, Window] = OrderedDict()

    def decide(
        self, asks: Sequence[Ask], confidences: Sequence[float], now: float
    ) -> list[Promise]:
        """What each frame of a batch is allowed. All have `sent` and `total` in common."""
        most = [max(0, int((ask.afford - HEAD) / ask.patch)) if ask.afford < inf else
                ask.terms.total for ask in asks]  # fmt: skip
        if self._bucket is not None:
            self._share(asks, confidences, self._bucket.left(now), most)
        alike: dict[Terms, list[int]] = {}
        for place, ask in enumerate(asks):
            alike.setdefault(ask.terms, []).append(place)
        promises = [Promise(0)] * len(asks)
        for terms, places in alike.items():
            window = self._window(terms)
            extras = window.decide(
                [confidences[place] for place in places],
                [asks[place].size if terms.in_bytes else terms.sent for place in places],
                [most[place] for place in places],
            )
            for place, extra in zip(places, extras, strict=True):
                if extra:
                    size = extra * asks[place].patch + HEAD
                    promises[place] = Promise(extra, size)
                    if terms.in_bytes:
                        promises[place] = Promise(extra, size, window, window.cost(extra))
        if self._bucket is not None:
            self._bucket.hold(sum(promise.size for promise in promises))
        return promises

    def settle(self, promise: Promise, size: int) -> None:
        """The second round that was promised has come, in a packet of `size` bytes."""
        if self._bucket is not None:
            self._bucket.hold(-promise.size)
        if promise.window is not None:
            promise.window.balance += promise.cost - size

    def _window(self, terms: Terms) -> Window:
        window = self._windows.pop(terms, None) or Window(terms, self._table)
        self._windows[terms] = window
        while len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        return window

    def _share(
        self, asks: Sequence[Ask], confidences: Sequence[float], left: float, most: list[int]
    ) -> None:
        """Lower `most` where all together it is more than `left` bytes, as (3)-(4) have it."""
        unsure = [i for i, ask in enumerate(asks) if confidences[i] < ask.terms.threshold]
        if not unsure:
            return
        terms = asks[unsure[0]].terms
        left -= HEAD * len(unsure)
        patch = sum(asks[i].patch for i in unsure) / len(unsure)
        if self._table is None:
            limits = [max(0, int(left / patch / len(unsure)))] * len(unsure)
        else:
            places = [self._table.interval(confidences[i]) for i in unsure]
            found = self._table.at(terms.sent / terms.total)
            counts = np.bincount(places, minlength=len(found.counts)).astype(np.float64)
            patches = steps(self._table, terms)
            chosen = patches[solve(found.p, counts, patches * patch, left)]
            limits = [int(chosen[place]) for place in places]
        for i, limit in zip(unsure, limits, strict=True):
            most[i] = min(most[i], limit)
