"""Accuracy of full frames and of A-MOT's one and two rounds, in torch alone, to choose settings.

This is the server's arithmetic without wire, batching or patch coding. It serves to choose r1, r2
and the threshold on frames held out of training; the figures to quote are those measured with the
device and the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from profiles.train.patchwork import to_patches
from profiles.train.photos import Photos
from server.models.checkpoint import load_model
from server.models.mae import MAEConfig, MaskedAutoencoder, take
from server.models.vit import VisionTransformer, ViTConfig

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rounds:
    """Per frame: right after round one, its confidence then, and right after round two."""

    first: Bools
    confidence: npt.NDArray[np.float64]
    second: Bools


@dataclass(frozen=True)
class Choice:
    """One setting of A-MOT and its top-1 accuracy, mean share of patches and mean rounds."""

    r1: float
    r2: float
    threshold: float
    accuracy: float
    share: float
    rounds: float


def trained_mae(path: Path, config: MAEConfig) -> MaskedAutoencoder:
    """The autoencoder that a stage left at ``path``."""
    model = load_model(path, "mae", config)
    assert isinstance(model, MaskedAutoencoder)
    return model


def trained_vit(path: Path, config: ViTConfig) -> VisionTransformer:
    """The classifier that a stage left at ``path``."""
    model = load_model(path, "vit", config)
    assert isinstance(model, VisionTransformer)
    return model


def batches(photos: Photos, batch: int = 50) -> Iterator[tuple[Tensor, npt.NDArray[np.int64]]]:
    """Patches and labels of all ``photos``, batch by batch."""
    for start in range(0, len(photos), batch):
        part = slice(start, start + batch)
        yield to_patches(photos.frames[part]), photos.labels[part]


@torch.no_grad()
def full(vit: VisionTransformer, photos: Photos) -> float:
    """Top-1 accuracy on whole frames."""
    right = sum(int((vit(p).logits.argmax(1).numpy() == y).sum()) for p, y in batches(photos))
    return right / len(photos)


@torch.no_grad()
def two_rounds(
    vit: VisionTransformer,
    mae: MaskedAutoencoder,
    photos: Photos,
    r1: float,
    seconds: Sequence[float],
    seed: int = 0,
) -> list[Rounds]:
    """Both rounds of A-MOT on every frame (section 3 of the paper), for each of ``seconds``.

    ``r1`` of the patches at random, then r2 of them where the class token of round one attends
    most.
    """
    torch.manual_seed(seed)
    first: list[Bools] = []
    confidence: list[npt.NDArray[np.float64]] = []
    second: list[list[Bools]] = [[] for _ in seconds]
    for patches, labels in batches(photos):
        b, n, _ = patches.shape
        sent = torch.rand(b, n).argsort(1)[:, : max(1, round(r1 * n))]
        out = vit(mae.recover(take(patches, sent), sent))
        best = out.logits.softmax(1).max(1)
        first.append(best.indices.numpy() == labels)
        confidence.append(best.values.numpy().astype(np.float64))
        rest = out.attention.scatter(1, sent, -1.0)
        for r2, right in zip(seconds, second, strict=True):
            more = torch.cat((sent, rest.topk(round(r2 * n), dim=1).indices), dim=1)
            again = vit(mae.recover(take(patches, more), more))
            right.append(again.logits.argmax(1).numpy() == labels)
    one, sure = np.concatenate(first), np.concatenate(confidence)
    return [Rounds(one, sure, np.concatenate(right)) for right in second]


@torch.no_grad()
def one_round(
    vit: VisionTransformer, mae: MaskedAutoencoder, photos: Photos, share: float, seed: int = 0
) -> float:
    """Top-1 accuracy with ``share`` of the patches at random, recovered, and no second round."""
    torch.manual_seed(seed)
    right = 0
    for patches, labels in batches(photos):
        b, n, _ = patches.shape
        sent = torch.rand(b, n).argsort(1)[:, : max(1, round(share * n))]
        out = vit(mae.recover(take(patches, sent), sent))
        right += int((out.logits.argmax(1).numpy() == labels).sum())
    return right / len(photos)


def at(rounds: Rounds, r1: float, r2: float, threshold: float) -> Choice:
    """What ``rounds``, made with ``r1`` and ``r2``, gives at ``threshold``."""
    again = rounds.confidence < threshold
    right = np.where(again, rounds.second, rounds.first)
    more = float(again.mean())
    return Choice(r1, r2, threshold, float(right.mean()), r1 + r2 * more, 1 + more)


def choices(
    vit: VisionTransformer,
    mae: MaskedAutoencoder,
    photos: Photos,
    firsts: tuple[float, ...] = (0.15, 0.2, 0.25),
    seconds: tuple[float, ...] = (0.1, 0.15, 0.2),
    thresholds: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 0.95),
) -> list[Choice]:
    """Every combination of the given settings on ``photos``."""
    found = []
    for r1 in firsts:
        for r2, rounds in zip(seconds, two_rounds(vit, mae, photos, r1, seconds), strict=True):
            found += [at(rounds, r1, r2, threshold) for threshold in thresholds]
    return found


def choose(found: list[Choice], share: float) -> Choice:
    """The most accurate setting whose mean share of patches is at most ``share``.

    Raises ValueError if none is that small.
    """
    small = [choice for choice in found if choice.share <= share]
    if not small:
        raise ValueError(f"no setting sends at most {share:.0%} of the patches")
    return max(small, key=lambda choice: (choice.accuracy, -choice.share))
