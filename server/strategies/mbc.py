"""MBC on the server: undo the bottleneck, then the classifier's blocks.

The model-based compression of A-MOT's comparison (Liu et al., ACM TOSN 2024, section 5.1), after
Matsubara et al., BottleFit (WoWMoM 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.errors import ConfigError, Refused
from common.messages import Query
from server.models.bottleneck import Bottleneck
from server.serving import Serving, no_step
from server.split import finish
from server.strategy import Memory, Outcome, Work

NAME = "mbc"
KEY = (NAME, "symbols")


class Mbc:
    """Step "symbols": uint8 [channels, N], each below the bottleneck's levels."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._bottleneck = serving.model("bottleneck", Bottleneck)
        config = self._bottleneck.config
        if (config.dim, config.grid) != (
            serving.classifier.config.dim, serving.classifier.config.grid
        ):  # fmt: skip
            raise ConfigError("the profile's bottleneck does not fit its classifier")
        self._shape = (config.channels, config.grid**2)

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check the symbols. Raises Refused("bad" | "unknown")."""
        if query.step != "symbols":
            raise no_step(query, "symbols")
        symbols = self._serving.array(query, "symbols", "uint8", self._shape)
        if symbols.max() >= self._bottleneck.config.levels:
            raise Refused("bad", f"symbols reach {symbols.max()}, beyond the bottleneck's levels")
        return Work(KEY, {"symbols": symbols})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Restore the tokens and run all blocks."""
        stacked = np.stack([work.arrays["symbols"] for work in works])
        symbols = torch.from_numpy(stacked).to(self._serving.device, torch.float32)
        return [Outcome(row) for row in finish(self._serving, self._bottleneck.decode(symbols), 0)]

    def warm(self) -> None:
        """One forward per batch size worth it."""
        blank = Work(KEY, {"symbols": np.zeros(self._shape, np.uint8)})
        for size in self._serving.warm_sizes:
            self.forward([blank] * size)


def create(serving: Serving) -> Mbc:
    """The strategy for one profile."""
    return Mbc(serving)
