"""What strategies that split the classifier share: take its tokens up, run what is left of it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import Refused
from common.messages import Query
from common.tokens import DTYPES, SCALE, restore
from server.serving import F32, Serving, to_numpy

LARGEST = 1e7
"""No value of a token: what "int8" can say at most is less, and beyond it layer norms overflow."""


def received(serving: Serving, query: Query, count: int | None = None) -> F32:
    """The tokens float32 [n, dim] in tensor "tokens" (and "scales"), as `common.tokens` packs them.

    `count`: how many there must be; None: from two up to those of a whole frame. Raises
    Refused("bad").
    """
    vit = serving.classifier
    whole = vit.pos_embed.shape[1]
    tensor = serving.tensor(query, "tokens")
    if count is None:
        if not tensor.shape or not 2 <= tensor.shape[0] <= whole:
            raise Refused("bad", f"tokens are {tensor.shape}: give 2 to {whole} of them")
        count = tensor.shape[0]
    if tensor.dtype not in DTYPES.values():
        raise Refused("bad", f"tokens are {tensor.dtype}, not one of {', '.join(DTYPES.values())}")
    values = serving.array(query, "tokens", tensor.dtype, (count, vit.config.dim))
    scales = None
    if tensor.dtype == "int8":
        scales = serving.array(query, "scales", SCALE, (count,))
    tokens = restore(values, scales)
    if not (np.abs(tokens) <= LARGEST).all():  # nor NaN
        raise Refused("bad", f"tokens are not all finite, or beyond {LARGEST:g}")
    return tokens


def finish(serving: Serving, tokens: torch.Tensor, done: int) -> F32:
    """Probabilities [B, classes] of tokens [B, 1+N, dim] that `done` blocks have seen."""
    vit = serving.classifier
    for block in vit.blocks[done:]:
        tokens = block(tokens)
    return to_numpy(F.softmax(vit.forward_head(tokens).float(), dim=-1))
