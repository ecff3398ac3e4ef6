"""How long to wait before the next attempt to connect. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with full jitter. Times in seconds.

    After n failures in a row the wait is drawn evenly from 0 to min(cap, first * 2^(n-1)), so that
    a thousand devices do not come back in one instant. A refusal waits between half the cap and
    the cap: a bad token does not mend in a second.
    """

    first: float = 0.5
    cap: float = 60.0
    random: random.Random = field(default_factory=random.Random)
    _failures: int = 0

    def failed(self) -> float:
        """Note a failure; the seconds to wait."""
        # The exponent is bounded, or a week without a server would overflow a float.
        top = min(self.cap, self.first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self.random.uniform(0.0, top)

    def refused(self) -> float:
        """Note a refusal; the seconds to wait."""
        return self.random.uniform(self.cap / 2, self.cap)

    def succeeded(self) -> None:
        """Start over."""
        self._failures = 0
