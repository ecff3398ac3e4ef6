"""A-MOT on the server: recover, classify, and ask for what attention looks at.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4. Round one ("sample") recovers the frame from random
patches, classifies it, and ends where the confidence (the largest softmax) reaches the threshold.
Otherwise it asks for the patches with the highest attention of the class token in the last layer,
averaged over heads, that were not sent yet. Round two ("supply") recovers and classifies again
from all patches. Every reply carries its probabilities, so round one's are the provisional answer.

Works are batched by the number of patches: each such number is a forward of its own shape, and
devices of one profile sample alike. Padding would make the encoder pay for the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import patches
from common.errors import Refused
from common.messages import Query
from common.patches import Indices
from server.serving import F32, U8, Serving, no_step, number
from server.strategy import Memory, Outcome, Work

NAME = "amot"
SAMPLE, SUPPLY = "sample", "supply"


@dataclass(frozen=True, slots=True)
class FirstRound:
    """What round one leaves: `patches` uint8 [K, p*p*3] at `indices` [K], and those `wanted`."""

    patches: U8
    indices: Indices
    wanted: Indices

    @property
    def size(self) -> int:
        """Bytes held."""
        return self.patches.nbytes + self.indices.nbytes + self.wanted.nbytes


class Amot:
    """Two rounds at most; the profile's parameters are `threshold` and `r2` (a ratio of N)."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._params = serving.params(NAME)
        self._total = serving.input.patches
        self._width = serving.input.patch**2 * serving.input.channels
        serving.classifier, serving.recovery  # noqa: B018 - load now, not at the first query

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check one round. Raises Refused("bad" | "forgotten" | "unknown")."""
        if query.step == SAMPLE:
            return self._sample(query)
        if query.step == SUPPLY:
            return self._supply(query, memory)
        raise no_step(query, SAMPLE, SUPPLY)

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Recover and classify works of one step and one number of patches."""
        serving = self._serving
        sent = [work.arrays["patches"] for work in works]
        places = [work.arrays["indices"] for work in works]
        if len(places[0]) == self._total:  # nothing is missing; indices are 0..N-1
            pixels = serving.pixels(sent)
        else:
            pixels = serving.recover(sent, places)
        probabilities, attention = serving.classify(pixels)
        if works[0].key[1] == SUPPLY:
            return [Outcome(row) for row in probabilities]
        return [
            self._judge(work, row, looked)
            for work, row, looked in zip(works, probabilities, attention, strict=True)
        ]

    def warm(self) -> None:
        """Both rounds at the profile's ratios, per batch size worth it."""
        first = min(self._total, max(1, round(self._params.get("r1", 0.25) * self._total)))
        both = min(self._total, first + round(self._params.get("r2", 0.2) * self._total))
        for count, step in ((first, SAMPLE), (both, SUPPLY), (self._total, SUPPLY)):
            blank = np.zeros((count, self._width), np.uint8)
            arrays = {"patches": blank, "indices": np.arange(count)}
            work = Work((NAME, step, count), arrays, {"threshold": 1.0, "extra": 1})
            for size in self._serving.warm_sizes:
                self.forward([work] * size)

    def _sample(self, query: Query) -> Work:
        threshold = number(query, "threshold", self._params.get("threshold", 0.8), 0.0, 1.0)
        extra = number(query, "r2", self._params.get("r2", 0.2), 0.0, 1.0)
        bitmap = self._serving.array(query, "bitmap", "uint8", ((self._total + 7) // 8,))
        try:
            indices = patches.unpack(bitmap.tobytes(), self._total)
        except ValueError as error:
            raise Refused("bad", str(error)) from None
        if not len(indices):
            raise Refused("bad", "the bitmap is empty: send at least one patch")
        return Work(
            (NAME, SAMPLE, len(indices)),
            {"patches": self._patches(query, len(indices)), "indices": indices},
            {"threshold": threshold, "extra": round(extra * self._total)},
        )

    def _supply(self, query: Query, memory: Memory) -> Work:
        first: Any = memory.recall(query.memory)
        assert isinstance(first, FirstRound)
        supplied = self._patches(query, len(first.wanted))
        indices = np.concatenate((first.indices, first.wanted))
        order = np.argsort(indices)
        together = np.concatenate((first.patches, supplied))[order]
        return Work((NAME, SUPPLY, len(indices)), {"patches": together, "indices": indices[order]})

    def _patches(self, query: Query, count: int) -> U8:
        """The `count` patches uint8 [count, p*p*3] of `query`, raw or as a JPEG of their mosaic."""
        serving, side = self._serving, self._serving.input.patch
        if serving.tensor(query, "patches").codec != "jpeg":
            return serving.array(query, "patches", "uint8", (count, self._width))
        rows, columns = patches.mosaic_grid(count)
        picture = serving.array(query, "patches", "uint8", (rows * side, columns * side, 3))
        return patches.unmosaic(picture, count, side)

    def _judge(self, work: Work, probabilities: F32, attention: F32) -> Outcome:
        """End with round one, or ask for the patches that matter most (section 4.2)."""
        indices = work.arrays["indices"]
        extra = min(work.params["extra"], self._total - len(indices))
        if probabilities.max() >= work.params["threshold"] or extra < 1:
            return Outcome(probabilities)
        looked = attention.copy()
        looked[indices] = -1.0  # sent already; attention is never negative
        wanted = np.sort(np.argsort(-looked, kind="stable")[:extra])
        # A copy: a view would hold the whole packet it came in.
        first = FirstRound(work.arrays["patches"].copy(), indices, wanted)
        wants = patches.pack(wanted, self._total)
        return Outcome(probabilities, wants=wants, remember=first, size=first.size)


def create(serving: Serving) -> Amot:
    """The strategy for one profile."""
    return Amot(serving)
