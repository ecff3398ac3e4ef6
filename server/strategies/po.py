"""PO on the server: the blocks behind the first, on the tokens that the device computed.

The partition-oriented baseline of A-MOT (Liu et al., ACM TOSN 2024, section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.messages import Query
from server.serving import Serving, no_step
from server.split import finish, received
from server.strategy import Memory, Outcome, Work

NAME = "po"
KEY = (NAME, "tokens")


class Po:
    """Step "tokens": float16 [1+N, dim] after the first block, or int8 with "scales" float16."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        config = serving.classifier.config
        self._shape = (1 + config.grid**2, config.dim)

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Restore the tokens. Raises Refused("bad" | "unknown")."""
        if query.step != "tokens":
            raise no_step(query, "tokens")
        return Work(KEY, {"tokens": received(self._serving, query, self._shape[0])})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Run the remaining blocks."""
        stacked = np.stack([work.arrays["tokens"] for work in works])
        tokens = torch.from_numpy(stacked).to(self._serving.device)
        return [Outcome(row) for row in finish(self._serving, tokens, 1)]

    def warm(self) -> None:
        """One forward per batch size worth it."""
        blank = Work(KEY, {"tokens": np.zeros(self._shape, np.float32)})
        for size in self._serving.warm_sizes:
            self.forward([blank] * size)


def create(serving: Serving) -> Po:
    """The strategy for one profile."""
    return Po(serving)
