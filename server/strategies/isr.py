"""Super-resolution: restore a small frame by a trained network, then classify it.

The baseline "Image Super resolution" of A-MOT (Liu et al. 2024, section 5.1), with a network of
this project's training (`server/models/superres.py`) in place of Real-ESRGAN.

Works are batched by the size of the frame: each such size is a forward of its own shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.messages import Query
from server.models.superres import SuperResolution
from server.serving import Serving, no_step
from server.strategy import Memory, Outcome, Work

NAME = "isr"
WHOLE = "whole"


class Isr:
    """Step "whole": "frame" uint8 [h, w, 3], no side above the input's, in any codec."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._network = serving.model("superres", SuperResolution)
        serving.classifier  # noqa: B018 - load it now, not at the first query

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the frame. Raises Refused("bad" | "unknown")."""
        if query.step != WHOLE:
            raise no_step(query, WHOLE)
        frame = self._serving.picture(query, "frame", 1)
        return Work((NAME, *frame.shape[:2]), {"frame": frame})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Restore and classify frames of one size."""
        serving, shape = self._serving, self._serving.input
        small = serving.pixels([work.arrays["frame"] for work in works]).permute(0, 3, 1, 2)
        whole = self._network.restore(small, shape.height, shape.width).permute(0, 2, 3, 1)
        probabilities, _ = serving.classify(_patchify(whole, shape.patch))
        return [Outcome(row) for row in probabilities]

    def warm(self) -> None:
        """The profile's size, per batch size worth it."""
        shape, scale = self._serving.input, self._serving.params(NAME).get("scale", 0.5)
        height, width = max(1, round(shape.height * scale)), max(1, round(shape.width * scale))
        blank = np.zeros((height, width, shape.channels), np.uint8)
        work = Work((NAME, height, width), {"frame": blank})
        for size in self._serving.warm_sizes:
            self.forward([work] * size)


def _patchify(frames: torch.Tensor, side: int) -> torch.Tensor:
    """[B, H, W, 3] to patches [B, N, side*side*3], as `common.patches` has them."""
    b, h, w, c = frames.shape
    grid = frames.reshape(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, -1, side * side * c)


def create(serving: Serving) -> Isr:
    """The strategy for one profile. Raises ConfigError if it has no network."""
    return Isr(serving)
