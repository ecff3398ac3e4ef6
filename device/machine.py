"""How long one machine takes for a layer of so many tokens: the paper's line, and a table. Pure.

Janus, section III-C: latency of one layer = a * tokens + b, by least squares. Attention grows with
the square of the tokens, caches end somewhere, and few tokens cost little less than none: where
the line misses what was measured by more than BAD of it, the table is right and is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

F64 = npt.NDArray[np.float64]
BAD = 0.1
"""The line is bad at a measured point that it misses by more than this share of it."""
ATTENTION = 1 / 3
"""Of a layer's work per token before the merging, the rest after it: 4 d^2 multiply-adds in the
projections of attention, 8 d^2 in an MLP of ratio 4."""


@dataclass(frozen=True)
class Machine:
    """One machine's profile of one model, in milliseconds.

    `tokens` ascending, and `ms` of a layer that merges none of them; `merging`: ms more, at each
    of `tokens`, for finding what to merge; `first`, `last`: embedding, classifying.
    """

    tokens: tuple[float, ...]
    ms: tuple[float, ...]
    merging: tuple[float, ...] = ()
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        sizes = {len(self.tokens), len(self.ms), len(self.merging or self.tokens)}
        if sizes != {max(len(self.tokens), 2)} or list(self.tokens) != sorted({*self.tokens}):
            raise ConfigError("a latency table is one time per number of tokens, two or more")

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Machine:
        """One side of a profile's "latency". Raises ConfigError if it is none."""
        try:
            tokens, ms, merging = (_numbers(entry[key]) for key in ("tokens", "ms", "merging"))
            return cls(tokens, ms, merging, float(entry["first"]), float(entry["last"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"latency table: {error!r}: ./run measure PROFILE again") from None

    def written(self) -> dict[str, Any]:
        """As `read` reads it, with what people look at beside."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        slope, intercept = self.fit
        return plain | {
            "slope": slope, "intercept": intercept, "correlation": self.correlation,
            "error": self.error,
        }  # fmt: skip

    @cached_property
    def fit(self) -> tuple[float, float]:
        """(a, b) of the line, by least squares."""
        slope, intercept = np.polyfit(self.tokens, self.ms, 1)
        return float(slope), float(intercept)

    @property
    def correlation(self) -> float:
        """Pearson's, of tokens and ms."""
        return float(np.corrcoef(self.tokens, self.ms)[0, 1])

    @cached_property
    def missed(self) -> F64:
        """By what share of what was measured the line misses it, at each of `tokens`."""
        ms = np.array(self.ms)
        missed: F64 = np.abs(self.line(np.array(self.tokens)) - ms) / ms
        return missed

    @property
    def error(self) -> float:
        """The mean of `missed`."""
        return float(self.missed.mean())

    def line(self, tokens: Any) -> Any:
        """a * tokens + b, of a number or an array."""
        slope, intercept = self.fit
        return slope * tokens + intercept

    @cached_property
    def _curve(self) -> tuple[F64, F64]:
        known = np.array(self.tokens)
        return known, np.where(self.missed > BAD, self.ms, self.line(known))

    def curve(self, tokens: Any) -> F64:
        """The line, where it is good; between measured points where it is bad."""
        return np.asarray(np.interp(tokens, *self._curve), np.float64)

    def layer(self, tokens: npt.ArrayLike, merged: npt.ArrayLike) -> F64:
        """ms of layers that `tokens` enter and that merge `merged` of these (arrays alike).

        A layer that merges does all work after the merging on fewer tokens.
        """
        entering, gone = np.asarray(tokens, np.float64), np.asarray(merged, np.float64)
        mean = entering - gone * (1.0 - ATTENTION)
        extra = np.interp(entering, self.tokens, self.merging) if self.merging else 0.0
        return np.asarray(self.curve(mean) + np.where(gone > 0, extra, 0.0), np.float64)

    def scaled(self, factor: float) -> Machine:
        """A machine that takes `factor` times as long for everything."""
        return Machine(
            self.tokens,
            tuple(factor * ms for ms in self.ms),
            tuple(factor * ms for ms in self.merging),
            factor * self.first,
            factor * self.last,
        )


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
