"""DF on the server: classify the area that the device's filter selected.

The data-filtering baseline of A-MOT (Liu et al., ACM TOSN 2024, section 5.1). The classifier sees
the frame recovered by the MAE, or the selected patches alone. Works are batched by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import patches
from common.errors import Refused
from common.messages import Query
from server.serving import Serving, no_step, to_numpy
from server.strategy import Memory, Outcome, Work

NAME = "df"
STEP = "area"
MAE, NONE = "mae", "none"


class Df:
    """Step "area": "patches" and their "bitmap"; `recovery` is the query's or the profile's."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._params = serving.params(NAME)
        self._total = serving.input.patches
        serving.classifier, serving.recovery  # noqa: B018 - load now, not at the first query

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check the patches. Raises Refused("bad" | "unknown")."""
        if query.step != STEP:
            raise no_step(query, STEP)
        recovery: Any = query.params.get("recovery", self._params.get("recovery", MAE))
        if recovery not in (MAE, NONE):
            raise Refused("bad", f"recovery is {str(recovery)[:20]!r}, not mae or none")
        bitmap = self._serving.array(query, "bitmap", "uint8", ((self._total + 7) // 8,))
        try:
            indices = patches.unpack(bitmap.tobytes(), self._total)
        except ValueError as error:
            raise Refused("bad", str(error)) from None
        if not len(indices):
            raise Refused("bad", "the bitmap is empty: send at least one patch")
        sent = self._serving.supplied(query, len(indices))
        return Work((NAME, recovery, len(indices)), {"patches": sent, "indices": indices})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Classify works of one recovery and one number of patches."""
        serving = self._serving
        sent = [work.arrays["patches"] for work in works]
        places = [work.arrays["indices"] for work in works]
        if len(places[0]) == self._total:  # nothing is missing; indices are 0..N-1
            rows, _ = serving.classify(serving.pixels(sent))
        elif works[0].key[1] == MAE:
            rows, _ = serving.classify(serving.recover(sent, places))
        else:
            where = torch.from_numpy(np.stack(places).astype(np.int64, copy=False))
            output = serving.classifier(serving.pixels(sent), where.to(serving.device))
            rows = to_numpy(F.softmax(output.logits.float(), dim=-1))
        return [Outcome(row) for row in rows]

    def warm(self) -> None:
        """The largest number of patches at the profile's settings, per batch size worth it."""
        serving, recovery = self._serving, self._params.get("recovery", MAE)
        count = min(self._total, max(1, round(self._params.get("r", 0.3) * self._total)))
        width = serving.input.patch**2 * serving.input.channels
        arrays = {"patches": np.zeros((count, width), np.uint8), "indices": np.arange(count)}
        for size in serving.warm_sizes:
            self.forward([Work((NAME, recovery, count), arrays)] * size)


def create(serving: Serving) -> Df:
    """The strategy for one profile."""
    return Df(serving)
