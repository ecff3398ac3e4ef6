"""The device's contract: Frame, Plan, Answer, Strategy.

A strategy is a generator: it yields a Query, is sent the Result, and returns an Answer. One
round, two rounds, and no round at all are the same thing. What goes wrong while a query is out
(`Refused`, `Unavailable`) is thrown into the generator, so falling back is an ordinary `except`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from common.codec import decode
from common.errors import ProtocolError
from common.messages import Query, Result
from device.link import UNKNOWN, Estimate

Pixels = npt.NDArray[np.uint8]
"""uint8 [H, W, 3] RGB at the profile's input size; of a clip, [T, H, W, 3]."""
Samples = npt.NDArray[np.float32]
"""float32 [n], sound at the profile's rate, in [-1, 1]."""
Content = Pixels | Samples | str
LocalModel = Callable[[Pixels], npt.NDArray[np.float32]]
"""uint8 [H, W, 3] -> probabilities float32 [classes]."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, one sound or one sentence: what the profile's task asks about.

    `captured`: seconds on `time.monotonic`, from which the deadline runs.
    """

    index: int
    name: str
    content: Content
    captured: float

    @property
    def pixels(self) -> Pixels:
        """The picture, uint8 [H, W, 3], or clip, [T, H, W, 3]. Raises TypeError if not."""
        if isinstance(self.content, str) or self.content.dtype != np.uint8:
            raise TypeError(f"frame {self.name} is no picture")
        return cast(Pixels, self.content)

    @property
    def samples(self) -> Samples:
        """The sound, float32 [n]. Raises TypeError if this is none."""
        if isinstance(self.content, str) or self.content.dtype != np.float32:
            raise TypeError(f"frame {self.name} is no sound")
        return cast(Samples, self.content)

    @property
    def text(self) -> str:
        """The sentence. Raises TypeError if this is none."""
        if not isinstance(self.content, str):
            raise TypeError(f"frame {self.name} is no text")
        return self.content


@dataclass(frozen=True, slots=True)
class Plan:
    """How one frame is to be answered: a strategy, its parameters, its deadline.

    `params` override the profile's for this strategy. `deadline_ms` runs from `captured`;
    None: for ever. `carry`: bytes that two exchanges can move before the deadline, as far as the
    link is known; None: no deadline, or nothing known. `link`: what the last exchanges showed.
    """

    strategy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    deadline_ms: float | None = None
    carry: float | None = None
    link: Estimate = UNKNOWN


@dataclass(frozen=True, slots=True)
class Answer:
    """What is in a frame, where that was found out and what it cost.

    A strategy fills the first group (`Answer.of`), the pipeline the second.
    bytes_*: whole packets of all rounds. `degraded`: None, or why this is not the best answer.
    `error`: None, or why there is no label. link_*: the estimate when the answer was there.
    `chosen`: what the strategy decided for this frame, `predicted_ms` with it, where it decides.
    """

    label: str | None
    prob: float
    top: tuple[tuple[str, float], ...]
    source: str
    strategy: str
    rounds: int
    degraded: str | None = None
    error: str | None = None
    chosen: Mapping[str, Any] | None = None
    predicted_ms: float | None = None

    frame: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    latency_ms: float = 0.0
    device_ms: float = 0.0
    server_ms: float = 0.0
    deadline_met: bool = True
    link_mbps: float | None = None
    link_rtt_ms: float | None = None

    @classmethod
    def of(
        cls,
        probabilities: npt.NDArray[np.float32],
        classes: Sequence[str],
        *,
        strategy: str,
        source: str,
        rounds: int,
        degraded: str | None = None,
        top: int = 5,
    ) -> Answer:
        """The answer that `probabilities` [classes] give."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = tuple((classes[i], float(probabilities[i])) for i in order)
        return cls(
            label=best[0][0],
            prob=best[0][1],
            top=best,
            source=source,
            strategy=strategy,
            rounds=rounds,
            degraded=degraded,
        )

    @classmethod
    def of_result(
        cls, result: Result, classes: Sequence[str], *, strategy: str, rounds: int
    ) -> Answer:
        """The answer in a server's result. Raises ProtocolError if it holds none."""
        try:
            probabilities = decode(result.tensors["probabilities"])
        except (KeyError, ValueError) as error:
            raise ProtocolError(f"a result without probabilities: {error}") from None
        if probabilities.shape != (len(classes),) or not np.isfinite(probabilities).all():
            raise ProtocolError(f"a result whose probabilities are not {len(classes)} numbers")
        return cls.of(
            probabilities,
            classes,
            strategy=strategy,
            source=result.source,
            rounds=rounds,
            degraded=result.degraded,
        )


Conversation = Generator[Query, Result, Answer]


class Strategy(Protocol):
    """One way to answer a frame.

    `heavy`: its steps compute for long, so they run in the worker thread, off the event loop.
    """

    @property
    def heavy(self) -> bool: ...

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """Answer `frame`; may raise Refused or Unavailable where it has nothing to fall back on."""
        ...
