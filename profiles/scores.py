"""Our router: what each tier would earn, predicted from the embedding alone by a small network.

Nearest means cannot tell an easy sample from a hard one where both lie on either side of the
classes' border: a mean has no side. A hidden layer can. It is trained on the validation split to
predict, for each tier, the true label's probability less the tier's cost, which is the reward (4)
with the probability of being right in place of the confidence; the highest one is taken.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from profiles.pools import F32, I64

HIDDEN = 16
STEPS = 400
RATE = 0.02
DECAY = 0.02


def train(embeddings: F32, rewards: F32, seed: int = 0) -> dict[str, F32]:
    """Weights of ``device.pools.Scores`` from samples [n, dim] and their rewards [n, 3]."""
    torch.manual_seed(seed)
    centre, scale = embeddings.mean(0), embeddings.std(0) + 1e-6
    x = torch.from_numpy((embeddings - centre) / scale)
    y = torch.from_numpy(rewards.astype(np.float32))
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimiser.zero_grad()
        F.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
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


def predict(scores: dict[str, F32], embeddings: F32) -> F32:
    """The rewards predicted, [n, 3]."""
    hidden = np.maximum(embeddings @ scores["inner"] + scores["inner_b"], 0)
    return np.asarray(hidden @ scores["outer"] + scores["outer_b"])


def route(scores: dict[str, F32], embeddings: F32) -> I64:
    """The tier of each sample, int64 [n]."""
    return np.asarray(predict(scores, embeddings).argmax(1), np.int64)
