"""The whole frame without loss, classified: what the others are measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from common import sound
from common.errors import Refused
from common.messages import Query
from server.models.recogniser import Recogniser
from server.serving import U8, Serving, no_step, to_numpy
from server.strategy import Memory, Outcome, Strategy, Work
from server.whole import WholeFrame

KEY = ("raw", "whole")


class Raw(WholeFrame):
    """Step "whole": "frame" uint8 [H, W, 3] at the input's size, in any lossless codec."""

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the frame. Raises Refused("bad" | "unknown")."""
        if query.step != "whole":
            raise no_step(query, "whole")
        if self.serving.tensor(query, "frame").codec in ("jpeg", "webp"):
            raise Refused("bad", "a JPEG or WebP goes by the strategy jpeg")
        return Work(KEY, {"patches": self.serving.frame(query)})


class RawSound:
    """Step "whole" of a sound: its features, "frame" uint8 [bands, frames, 1], or "samples" [n].

    Samples are int16, or uint8 by the mu-law curve; features are made of them here.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._model = serving.model("recogniser", Recogniser)

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the sound. Raises Refused("bad" | "unknown")."""
        if query.step != "whole":
            raise no_step(query, "whole")
        size = self._serving.input
        if "samples" in query.tensors:
            frame = sound.features(self._samples(query), size.height, size.width)
        else:
            frame = self._serving.array(query, "frame", "uint8", (size.height, size.width, 1))
        return Work(KEY, {"frame": frame})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Recognise the sounds."""
        frames: list[U8] = [work.arrays["frame"] for work in works]
        logits = self._model(self._serving.pixels(frames).squeeze(3))
        return [Outcome(row) for row in to_numpy(F.softmax(logits.float(), dim=-1))]

    def warm(self) -> None:
        """One forward per batch size worth it."""
        size = self._serving.input
        blank = Work(KEY, {"frame": np.zeros((size.height, size.width, 1), np.uint8)})
        for count in self._serving.warm_sizes:
            self.forward([blank] * count)

    def _samples(self, query: Query) -> sound.F32:
        tensor = self._serving.tensor(query, "samples")
        if len(tensor.shape) != 1 or not 0 < tensor.shape[0] <= sound.LONGEST:
            raise Refused("bad", f"samples are {tensor.shape}: give [n], n to {sound.LONGEST}")
        if tensor.dtype not in ("int16", "uint8"):
            raise Refused("bad", f"samples are {tensor.dtype}: give int16, or uint8 by mu-law")
        return sound.expand(self._serving.array(query, "samples", tensor.dtype, tensor.shape))


def create(serving: Serving) -> Strategy:
    """The strategy for one profile."""
    if serving.profile.manifest.task == "listen":
        return RawSound(serving)
    return Raw(serving, KEY)
