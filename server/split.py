"""What strategies that split the classifier share: run what the device did not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from server.serving import F32, Serving, to_numpy


def finish(serving: Serving, tokens: torch.Tensor, done: int) -> F32:
    """Probabilities [B, classes] of tokens [B, 1+N, dim] that `done` blocks have seen."""
    vit = serving.classifier
    for block in vit.blocks[done:]:
        tokens = block(tokens)
    return to_numpy(F.softmax(vit.forward_head(tokens).float(), dim=-1))
