"""What strategies that send the whole frame share: classify it as it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from server.serving import Serving
from server.strategy import Outcome, Work


class WholeFrame:
    """`forward` and `warm` of works that hold "patches" uint8 [N, p*p*3], all of one `key`."""

    def __init__(self, serving: Serving, key: tuple[Hashable, ...]) -> None:
        self.serving = serving
        self.key = key
        serving.classifier  # noqa: B018 - load it now, not at the first query

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Classify the frames."""
        pixels = self.serving.pixels([work.arrays["patches"] for work in works])
        probabilities, _ = self.serving.classify(pixels)
        return [Outcome(row) for row in probabilities]

    def warm(self) -> None:
        """One forward per batch size worth it."""
        shape = self.serving.input
        blank = np.zeros((shape.patches, shape.patch**2 * shape.channels), np.uint8)
        for size in self.serving.warm_sizes:
            self.forward([Work(self.key, {"patches": blank})] * size)
