"""What a session remembers of its frames between rounds: bounded, expiring. Pure, no clock."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from common.errors import Refused

FORGOTTEN = "what round one left is gone: it expired, was used, or made room for newer frames"


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bounds of one session's memory: bytes, frames, and seconds a frame is kept."""

    bytes: int = 8 << 20
    count: int = 64
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class _Kept:
    strategy: str
    value: Any
    size: int
    until: float


class Memory:
    """The frames one device may still ask about; the oldest go first when it is full."""

    def __init__(self, limits: MemoryLimits) -> None:
        self._limits = limits
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, id: int, strategy: str, value: Any, size: int, now: float) -> bool:
        """Keep `value` of `size` bytes under query `id`. False: it is larger than all there is."""
        self._forget(id)
        limits = self._limits
        if size > limits.bytes or limits.count < 1:
            return False
        while self._kept and (self.bytes + size > limits.bytes or len(self) >= limits.count):
            self._forget(next(iter(self._kept)))
        self._kept[id] = _Kept(strategy, value, size, now + limits.seconds)
        self.bytes += size
        return True

    def recall(self, id: int, strategy: str, now: float) -> Any:
        """What `strategy` left under query `id`, once. Raises Refused("forgotten")."""
        self.expire(now)
        kept = self._kept.get(id)
        if kept is None or kept.strategy != strategy:
            raise Refused("forgotten", FORGOTTEN)
        self._forget(id)
        return kept.value

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._kept:
            id, oldest = next(iter(self._kept.items()))
            if oldest.until > now:
                return
            self._forget(id)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0

    def _forget(self, id: int) -> None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self.bytes -= kept.size


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was recalled for one query, as `prepare` sees it (`strategy.Memory`).

    The loop recalls before the work leaves it, so the memory itself needs no lock.
    """

    id: int = 0
    value: Any = None

    def recall(self, id: int) -> Any:
        """The value recalled for query `id`. Raises Refused("forgotten") for any other."""
        if id == 0 or id != self.id:
            raise Refused("forgotten", FORGOTTEN)
        return self.value


NOTHING = Recalled()
