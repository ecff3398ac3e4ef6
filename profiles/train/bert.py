"""Trains the text model: all exits at once, by the sum of their cross-entropies.

DIMEE's (1) and (2), with an exit behind every layer; DIMEC-DC's loss is the part of that sum at its
three exits. Words are dropped at random, and sentences of about one length make a batch.

DIMEC-DC's confidence and variability (its (1) and (2)) need what the weights of every epoch say of
the validation split. The probabilities are all that its Algorithm 1 uses of those weights, so they
are what is kept: the same numbers, and no file of weights per epoch. On a few cores a run is fewer
epochs than the paper's five, so they are noted NOTES times in a run, evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.sentences import batches
from server.models.bert import Bert, BertConfig

I64 = npt.NDArray[np.int64]
Ids = Sequence[Sequence[int] | I64]
PAD, UNKNOWN = 0, 1
BATCH = 128
NOTES = 6
DROPPED = 0.1
"""Share of the words that a training step does not show."""
RECIPE = Recipe(lr=1e-3, batch=1, weight_decay=0.05, warmup=0.08, ema=0.995)


def pad(ids: Ids) -> tuple[Tensor, Tensor]:
    """Token ids int64 [b, n] and the mask bool [b, 1, 1, n] that tells them from padding."""
    longest = max(map(len, ids))
    out = torch.full((len(ids), longest), PAD)
    for row, each in zip(out, ids, strict=True):
        row[: len(each)] = torch.as_tensor(each)
    return out, (out != PAD)[:, None, None, :]


def train(
    config: BertConfig, ids: Ids, labels: I64, held: Ids, dynamics: Path, checkpoint: Path,
    budget: Budget, seed: int, resume: bool,
) -> tuple[Bert, float]:  # fmt: skip
    """A model trained on ``ids`` and ``labels``, and the seconds that took.

    NOTES times, what it says of ``held``, float16 [exits, n, classes], goes to ``dynamics``.
    """
    torch.manual_seed(seed)
    model = Bert(config)
    lengths = np.array([len(each) for each in ids])
    steps = len(batches(lengths, BATCH, seed, 0))
    dynamics.mkdir(parents=True, exist_ok=True)
    if not resume:
        for old in dynamics.glob("*.npy"):
            old.unlink()
    order: tuple[int, list[npt.NDArray[np.intp]]] = (-1, [])

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        nonlocal order
        epoch, place = divmod(tick.step, steps)
        if order[0] != epoch:
            order = (epoch, batches(lengths, BATCH, seed, epoch))
        due = dynamics / f"{int(tick.progress * NOTES)}.npy"
        if tick.progress * NOTES >= 1 and not due.exists():
            note(model, held, due)
        rows = order[1][place]
        shown, mask = pad([ids[row] for row in rows])
        lost = (torch.rand(shown.shape) < DROPPED) & (shown > 3)
        target = torch.from_numpy(labels[rows])
        out = model(shown.masked_fill(lost, UNKNOWN), mask)
        total = torch.stack([F.cross_entropy(each, target) for each in out])
        right = [float((each.argmax(1) == target).float().mean()) for each in (out[0], out[-1])]
        return total.sum(), {"first": right[0], "last": right[1]}

    seconds = fit(
        model, loss, RECIPE, budget, steps, seed=seed,
        checkpoint=checkpoint, resume=resume, title="bert",
    )  # fmt: skip
    note(model, held, dynamics / f"{NOTES}.npy")
    return model, seconds


def note(model: Bert, ids: Ids, path: Path) -> None:
    """Write what ``model`` says of ``ids`` now: probabilities float16 [exits, n, classes]."""
    training = model.training
    np.save(path, probabilities(model.eval(), ids).astype(np.float16))
    model.train(training)


@torch.no_grad()
def probabilities(model: Bert, ids: Ids) -> npt.NDArray[np.float32]:
    """Of every exit in order: float32 [exits, n, classes]. ``model`` is in evaluation mode."""
    lengths = np.array([len(each) for each in ids])
    order = np.argsort(lengths, kind="stable")
    out = np.empty((len(model.config.exits) + 1, len(ids), model.config.classes), np.float32)
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        shown, mask = pad([ids[row] for row in rows])
        out[:, rows] = torch.stack([F.softmax(each, -1) for each in model(shown, mask)]).numpy()
    return out
