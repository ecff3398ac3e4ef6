"""Our router: the pool of a sample, learned from its embedding by a small network.

A mean has no side: samples that are hard because they lie on the border between two classes have
the same mean as the easy ones on both sides of it, so nearest means cannot part them. A hidden
layer can. It is trained on the validation split to tell Algorithm 1's pools, which know what all
exits make of a sample, and as the papers' rule is given the embedding and nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from profiles.pools import F32, I64

HIDDEN = 16
STEPS, RATE, DECAY = 150, 0.02, 0.05
NOISE = 0.5
"""Added to standardised embeddings in training: few samples must not be learned by heart."""


def train(embeddings: F32, pools: I64, seed: int = 0) -> dict[str, F32]:
    """Weights of ``device.pools.Scores`` from embeddings [n, dim] and pools int64 [n]."""
    torch.manual_seed(seed)
    centre, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
    x, y = torch.from_numpy((embeddings - centre) / scale), torch.from_numpy(pools)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x + NOISE * torch.randn_like(x)), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    inner, outer = model[0], model[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    with torch.no_grad():
        weight = (inner.weight / torch.from_numpy(scale)).T
        return {
            "inner": weight.numpy().astype(np.float32),
            "inner_b": (inner.bias - torch.from_numpy(centre) @ weight).numpy().astype(np.float32),
            "outer": outer.weight.T.numpy().astype(np.float32),
            "outer_b": outer.bias.numpy().astype(np.float32),
        }


def route(scores: dict[str, F32], embeddings: F32) -> I64:
    """The tier of each sample, int64 [n]."""
    hidden = np.maximum(embeddings @ scores["inner"] + scores["inner_b"], 0)
    told = (hidden @ scores["outer"] + scores["outer_b"]).argmax(1)
    return np.asarray(told, np.int64)
