"""Which tier a sample goes to, told from its embedding alone: pools of easy, medium, hard samples.

DIMEC-DC, section 4.4, and DIMEE, section 1.7 (Bajpai and Hanawal): a sample belongs to the pool
whose mean embedding is nearest, and with adaptive pools the mean then takes the sample in (5).
`Scores` is ours: it is given the embedding alone, too, and has learned to tell the pools.
"""

from __future__ import annotations

import io
import logging
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

log = logging.getLogger("offboard.device")

F32 = npt.NDArray[np.float32]
MOBILE, EDGE, CLOUD = "mobile", "edge", "cloud"
TIERS = (MOBILE, EDGE, CLOUD)
"""Where easy, medium and hard samples are answered, in the order of the pools."""
HEAVIEST = 1_000_000
"""Samples after which a mean gains no more weight: counts stay bounded, means can still move."""
BROKEN = (OSError, ValueError, KeyError, EOFError, BadZipFile)
"""What numpy raises for a file that is no .npz, or is cut short."""
EVERY = 1.0
"""Seconds between two writes of adapted pools: what a power cut can lose, and what a card bears."""


@dataclass(slots=True)
class Pools:
    """`means` float64 [3, dim] and `counts` int64 [3], of samples behind each mean."""

    means: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    def nearest(self, embedding: F32) -> int:
        """The pool whose mean is nearest (Euclidean); an empty pool has none."""
        distances = ((self.means - embedding) ** 2).sum(1)
        return int(np.where(self.counts > 0, distances, np.inf).argmin())

    def add(self, embedding: F32, pool: int) -> None:
        """The running mean of (5): P <- (n P + x) / (n + 1)."""
        count = int(self.counts[pool])
        self.means[pool] += (embedding - self.means[pool]) / (count + 1)
        self.counts[pool] = min(count + 1, HEAVIEST)


@dataclass(frozen=True, slots=True)
class Scores:
    """A hidden layer of `inner` [dim, k], `inner_b` [k] and one score per pool, `outer` [k, 3]."""

    inner: F32
    inner_b: F32
    outer: F32
    outer_b: F32

    def best(self, embedding: F32) -> int:
        """The tier of the highest score."""
        hidden = np.maximum(embedding @ self.inner + self.inner_b, 0)
        return int((hidden @ self.outer + self.outer_b).argmax())


@dataclass(slots=True, weakref_slot=True)
class Kept:
    """Adaptive pools that outlive the program, in `path`; where it cannot be written they do not.

    They are written every second at most, and when the program ends or has no more use for them.
    `started`: the profile's pools, from which a missing or broken file starts again.
    """

    path: Path
    pools: Pools
    _written: float = field(default=-EVERY)
    _last: weakref.finalize[[Path, Pools], Kept] | None = None

    @classmethod
    def of(cls, path: Path, started: Pools) -> Kept:
        """The pools as they were left, or `started`."""
        try:
            with np.load(io.BytesIO(path.read_bytes())) as held:
                left = Pools(held["means"], held["counts"])
            if left.means.shape != started.means.shape or not np.isfinite(left.means).all():
                raise ValueError("of another shape, or not finite")
            return cls(path, left)
        except FileNotFoundError:
            log.debug("no adapted pools yet")
        except BROKEN as error:
            log.warning("adapted pools in %s are unusable, starting again: %s", path, error)
        return cls(path, Pools(started.means.copy(), started.counts.copy()))

    def take(self, embedding: F32) -> int:
        """The nearest pool, which takes the sample in."""
        pool = self.pools.nearest(embedding)
        self.pools.add(embedding, pool)
        if self._last is None:
            self._last = weakref.finalize(self, _write, self.path, self.pools)
        now = time.monotonic()
        if now - self._written >= EVERY:
            self._written = now
            self.write()
        return pool

    def write(self) -> None:
        """Write them now."""
        _write(self.path, self.pools)


def _write(path: Path, pools: Pools) -> None:
    """Aside, and renamed, so that a power cut leaves no half file."""
    stream = io.BytesIO()
    np.savez(stream, means=pools.means, counts=pools.counts)
    part = path.with_suffix(".part")
    try:
        part.write_bytes(stream.getvalue())
        part.replace(path)
    except OSError as error:
        log.warning("adapted pools cannot be kept in %s: %s", path, error.strerror)


def load(path: Path) -> tuple[Pools, Scores | None]:
    """The pools, and the scores if there are any, in a file of a profile. Raises ConfigError."""
    try:
        with np.load(path) as held:
            pools = Pools(held["means"].astype(np.float64), held["counts"].astype(np.int64))
            if "inner" not in held:
                return pools, None
            names = ("inner", "inner_b", "outer", "outer_b")
            return pools, Scores(*(held[name].astype(np.float32) for name in names))
    except BROKEN as error:
        raise ConfigError(f"{path} holds no pools: {error}") from None
