"""Server-driven transmission on the server: upsample, classify, and ask for the target area.

After Du et al. (DDS, SIGCOMM 2020), as A-MOT (Liu et al. 2024, sections 3.2 and 5.1) compares
itself with it: round one ("low") upsamples a small frame and classifies it; where it is unsure it
asks for the patches with the highest attention, at full size. Round two ("supply") pastes them
over the upsampled frame and classifies again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import patches
from common.messages import Query
from common.patches import Indices
from server.serving import F32, U8, Serving, no_step, number
from server.strategy import Memory, Outcome, Work

NAME = "sdt"
LOW, SUPPLY = "low", "supply"


@dataclass(frozen=True, slots=True)
class FirstRound:
    """What round one leaves: the upsampled frame's `patches` uint8 [N, p*p*3], those `wanted`."""

    patches: U8
    wanted: Indices

    @property
    def size(self) -> int:
        """Bytes held."""
        return self.patches.nbytes + self.wanted.nbytes


class Sdt:
    """Two rounds at most; the profile's parameters are `threshold` and `r2` (a ratio of N)."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._params = serving.params(NAME)
        self._total = serving.input.patches
        self._width = serving.input.patch**2 * serving.input.channels
        serving.classifier  # noqa: B018 - load it now, not at the first query

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check one round. Raises Refused("bad" | "forgotten" | "unknown")."""
        if query.step == LOW:
            threshold = number(query, "threshold", self._params.get("threshold", 0.8), 0.0, 1.0)
            extra = number(query, "r2", self._params.get("r2", 0.1), 0.0, 1.0)
            upsampled = self._serving.scaled_frame(query)
            asked = {"threshold": threshold, "extra": round(extra * self._total)}
            return Work((NAME, LOW), {"patches": upsampled}, asked)
        if query.step == SUPPLY:
            first: Any = memory.recall(query.memory)
            assert isinstance(first, FirstRound)
            pasted = first.patches.copy()
            pasted[first.wanted] = self._serving.supplied(query, len(first.wanted))
            return Work((NAME, SUPPLY), {"patches": pasted})
        raise no_step(query, LOW, SUPPLY)

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Classify the frames of one step."""
        pixels = self._serving.pixels([work.arrays["patches"] for work in works])
        probabilities, attention = self._serving.classify(pixels)
        if works[0].key[1] == SUPPLY:
            return [Outcome(row) for row in probabilities]
        return [
            self._judge(work, row, looked)
            for work, row, looked in zip(works, probabilities, attention, strict=True)
        ]

    def warm(self) -> None:
        """One forward per batch size worth it: both rounds have one shape."""
        blank = np.zeros((self._total, self._width), np.uint8)
        work = Work((NAME, LOW), {"patches": blank}, {"threshold": 1.0, "extra": 1})
        for size in self._serving.warm_sizes:
            self.forward([work] * size)

    def _judge(self, work: Work, probabilities: F32, attention: F32) -> Outcome:
        """End with round one, or ask for the patches that attention is highest on."""
        extra = work.params["extra"]
        if probabilities.max() >= work.params["threshold"] or extra < 1:
            return Outcome(probabilities)
        wanted = np.sort(np.argsort(-attention, kind="stable")[:extra])
        # A copy: a view would hold the whole packet it came in.
        first = FirstRound(work.arrays["patches"].copy(), wanted)
        wants = patches.pack(wanted, self._total)
        return Outcome(probabilities, wants=wants, remember=first, size=first.size)


def create(serving: Serving) -> Sdt:
    """The strategy for one profile."""
    return Sdt(serving)
