"""Janus on the server: the layers of the vision transformer that the device left over.

Jiang et al., "Janus: Collaborative Vision Transformer Under Dynamic Network Environment", section
IV-A. The device has decided how many tokens each layer merges; they come with the query, so the
two sides cannot disagree about a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import Refused
from common.merging import Merges, fits
from common.messages import Query
from server.models import merging
from server.serving import Serving, no_step, to_numpy
from server.split import received
from server.strategy import Memory, Outcome, Work

NAME = "janus"
FRAME, TOKENS = "frame", "tokens"


class Janus:
    """Step "frame": "frame" uint8 [H, W, 3]. Step "tokens": "tokens" [n, dim], "sizes" uint16 [n].

    Parameter "merges": how many tokens each layer that is left merges. Works of one key have as
    many tokens and the same layers ahead of them.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        vit = serving.classifier
        self._layers, self._whole = len(vit.blocks), vit.pos_embed.shape[1]

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the frame, or restore the tokens. Raises Refused("bad" | "unknown")."""
        if query.step == FRAME:
            merges = self._merges(query, self._whole)
            if len(merges) != self._layers:
                raise Refused("bad", f"merges are {len(merges)}, not {self._layers}")
            return Work((NAME, FRAME, merges), {"patches": self._serving.frame(query)})
        if query.step != TOKENS:
            raise no_step(query, FRAME, TOKENS)
        tokens = received(self._serving, query)
        sizes = self._serving.array(query, "sizes", "uint16", tokens.shape[:1])
        if sizes.min() < 1 or int(sizes.sum()) != self._whole:
            raise Refused("bad", f"sizes must be 1 or more and {self._whole} together")
        merges = self._merges(query, len(tokens))
        if len(merges) >= self._layers:
            raise Refused("bad", f"merges are {len(merges)}: tokens have passed a layer at least")
        arrays = {"tokens": tokens, "sizes": sizes.astype(np.float32)}
        return Work((NAME, TOKENS, len(tokens), merges), arrays)

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Run the layers that are left."""
        serving, vit = self._serving, self._serving.classifier
        key = works[0].key
        merges = key[-1]
        assert isinstance(merges, tuple)
        if key[1] == FRAME:
            tokens = vit.embed(serving.pixels([work.arrays["patches"] for work in works]))
            sizes = merging.unmerged(tokens)
        else:
            tokens, sizes = (
                torch.from_numpy(np.stack([work.arrays[name] for work in works])).to(serving.device)
                for name in ("tokens", "sizes")
            )
        ahead = vit.blocks[self._layers - len(merges) :]
        tokens, sizes = merging.run(ahead, tokens, sizes, merges)
        logits = vit.forward_head(tokens, sizes)
        return [Outcome(row) for row in to_numpy(F.softmax(logits.float(), dim=-1))]

    def warm(self) -> None:
        """One forward of whole frames per batch size worth it."""
        shape = self._serving.input
        blank = np.zeros((shape.patches, shape.patch**2 * shape.channels), np.uint8)
        work = Work((NAME, FRAME, (0,) * self._layers), {"patches": blank})
        for size in self._serving.warm_sizes:
            self.forward([work] * size)

    def _merges(self, query: Query, tokens: int) -> Merges:
        given = query.params.get("merges")
        if not isinstance(given, list | tuple) or not all(type(r) is int for r in given):
            raise Refused("bad", "merges is no list of whole numbers")
        merges = tuple(r for r in given if isinstance(r, int))
        if not fits(merges, tokens):
            raise Refused("bad", f"{tokens} tokens cannot merge by {merges!r}")
        return merges


def create(serving: Serving) -> Janus:
    """The strategy for one profile."""
    return Janus(serving)
