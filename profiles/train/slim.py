"""A CNN small enough to be published, distilled from the teacher's stored answers.

It begins as the teacher's own first layers, as far as it has them, so that a few minutes are
enough: what is new is the last stage. Labels are used here as for any classifier; a codec before it
is trained without.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos
from profiles.train.teach import SIDE, Lessons
from profiles.train.teacher import Teacher, to_tensor
from server.models.cnn import Cnn, CnnConfig

CROP = 104
"""Side of the part of a stored crop that a step looks at; a whole frame is 112 pixels then."""


def start(config: CnnConfig, teacher: Teacher) -> Cnn:
    """A network of that shape whose layers are the teacher's wherever they are of one shape."""
    model = Cnn(config)
    known, wanted = teacher.state_dict(), model.state_dict()
    same = {k: v for k, v in known.items() if k in wanted and v.shape == wanted[k].shape}
    model.load_state_dict({**wanted, **same})
    return model


def train(
    config: CnnConfig,
    teacher: Teacher,
    lessons: Lessons,
    labels: npt.NDArray[np.int64],
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[Cnn, float]:
    """The trained network, and the seconds it took. It sees crops as large as what `shrink` leaves.

    `labels`: of the photographs that `lessons` hold crops of.
    """
    torch.manual_seed(seed)
    model = start(config, teacher)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        frames, said = lessons.batch(tick.indices, tick.rng)
        top, left = (int(v) for v in tick.rng.integers(0, SIDE - CROP + 1, 2))
        x = to_tensor(frames[:, top : top + CROP, left : left + CROP])
        logits = model.behind(x, "input")[-1]
        right = torch.from_numpy(labels[tick.indices])
        apart = F.kl_div(F.log_softmax(logits, 1), F.softmax(said.logits, 1), reduction="batchmean")
        value = apart + 0.3 * F.cross_entropy(logits, right, label_smoothing=0.1)
        agree = (logits.argmax(1) == right).float().mean()
        return value, {"apart": float(apart.detach()), "right": float(agree)}

    recipe = Recipe(lr=2e-3, batch=64, weight_decay=0.05, warmup=0.05, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, len(labels), seed=seed, resume=resume,
        checkpoint=checkpoint, title="cnn",
    )  # fmt: skip
    return model, seconds


@torch.no_grad()
def accuracy(model: Cnn, photos: Photos, batch: int = 50) -> float:
    """Top-1 accuracy on whole frames."""
    right = 0
    for first in range(0, len(photos), batch):
        logits, _ = model(to_tensor(photos.frames[first : first + batch]))
        right += int((logits.argmax(1).numpy() == photos.labels[first : first + batch]).sum())
    return right / len(photos)
