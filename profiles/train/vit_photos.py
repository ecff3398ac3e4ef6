"""Trains the photograph classifier from a convolutional teacher, in two phases.

Phase 1 sees the stored 128-pixel crops, some of their patches dropped; phase 2 whole-size crops as
a server meets them: patches sent in one round or two, recovered by the MAE or not, and whole frames
that were coded and reduced. Beside the
label a frame has the teacher's logits, each patch token has the teacher's features at its place
(linear head, two blocks before the end), and its evidence for the classes there (after Jiang et
al. 2021, "All tokens matter"): with ten thousand pictures, the label alone teaches too little.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train import augment, served, teach
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.patchwork import PATCH, some, to_patches
from profiles.train.photos import Photos
from profiles.train.teacher import WIDTHS, Teacher, to_tensor
from server.models.checkpoint import resample_positions
from server.models.mae import MaskedAutoencoder, take
from server.models.vit import Block, VisionTransformer, ViTConfig

KINDS = ("one", "whole", "two", "recovered")
"""What phase 2 sees, in turn: see ``arrive``."""

TEACHER_SIDE = 160
"""Side at which the teacher looks at a 224-pixel crop: nearer to what it was trained at."""


class Student(nn.Module):
    """The classifier with the heads that only training needs."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vit = VisionTransformer(config)
        self.features = nn.Linear(config.dim, WIDTHS[2])
        self.evidence = nn.Linear(config.dim, config.classes)

    def forward(self, patches: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [b, classes]; per patch, the teacher's features and evidence as predicted."""
        x = self.vit.embed(patches, indices)
        for block in self.vit.blocks[:-2]:
            x = block(x)
        features = self.features(x[:, 1:])
        for block in self.vit.blocks[-2:]:
            assert isinstance(block, Block)
            x = block(x)
        return self.vit.forward_head(x), features, self.evidence(x[:, 1:])


def distil(
    student: Student, patches: Tensor, indices: Tensor | None, labels: Tensor, said: teach.Answers
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch and the figures to show."""
    logits, features, evidence = student(patches, indices)
    wanted, cells = said.features, said.evidence
    if indices is not None:
        wanted, cells = take(wanted, indices), take(cells, indices)
    label = F.cross_entropy(logits, labels, label_smoothing=0.1)
    soft = _divergence(logits, said.logits)
    each = _divergence(evidence.flatten(0, 1), cells.flatten(0, 1))
    like = F.mse_loss(features, wanted)
    value = 0.5 * label + soft + 0.5 * each + like
    return value, {
        "right": float((logits.argmax(1) == labels).float().mean()),
        "soft": float(soft.detach()),
        "like": float(like.detach()),
    }


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    target = F.softmax(wanted, dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")


def phase_one(
    config: ViTConfig,
    lessons: teach.Lessons,
    labels: Tensor,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[Student, float]:
    """The student at 128 pixels, on all stored crops, and the seconds it took."""
    torch.manual_seed(seed)
    model = Student(replace(config, image=teach.SIDE))

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        frames, said = lessons.batch(tick.indices, tick.rng)
        patches = to_patches(frames)
        b, n, _ = patches.shape
        indices = None
        if tick.progress < 0.9:
            indices = some(int(n * tick.rng.uniform(0.45, 0.8)), n, b)
            patches = take(patches, indices)
        return distil(model, patches, indices, labels[tick.indices], said)

    recipe = Recipe(lr=1.5e-3, batch=64, weight_decay=0.05, warmup=0.06, ema=0.998)
    seconds = fit(
        model, loss, recipe, budget, len(labels), seed=seed, resume=resume,
        checkpoint=checkpoint, title="vit 128",
    )  # fmt: skip
    return model, seconds


def enlarge(student: Student, config: ViTConfig) -> Student:
    """The same weights for another frame size, positions resampled."""
    state = student.state_dict()
    state["vit.pos_embed"] = resample_positions(state["vit.pos_embed"], config.grid)
    made = Student(config)
    made.load_state_dict(state)
    return made


def arrive(
    kind: str, vit: VisionTransformer, mae: MaskedAutoencoder, frames: served.U8, tick: Tick
) -> tuple[Tensor, Tensor | None]:
    """``frames`` as the classifier meets them when served: patches and their places (None: all).

    "one" and "two": only patches sent in one or two rounds; "recovered": those recovered by the
    MAE; "whole": a whole frame, coded and perhaps reduced. Where all places are filled, half of
    them are dropped for most of the training, which costs little accuracy and much less time.
    """
    rng = tick.rng
    if kind == "whole":
        if rng.random() < 0.7:
            scale = float(rng.choice((1.0, 0.5, 0.375, 0.25)))
            frames = served.reduced(frames, scale, int(rng.integers(10, 90)))
        patches = to_patches(frames)
    else:
        patches = to_patches(frames)
        share = rng.uniform(0.06, 0.5)
        b, n, _ = patches.shape
        if kind == "two":
            indices = served.two_rounds(vit, patches, share, rng.uniform(0.05, 0.3))
        else:
            indices = some(max(1, int(n * share)), n, b)
        sent = served.coded(take(patches, indices), int(rng.integers(15, 90)))
        if kind != "recovered":
            return sent, indices
        with torch.no_grad():
            patches = mae.recover(sent, indices)
    if tick.progress >= 0.8:
        return patches, None
    b, n, _ = patches.shape
    kept = some(int(n * rng.uniform(0.4, 0.8)), n, b)
    return take(patches, kept), kept


def phase_two(
    student: Student,
    scale: teach.Scale,
    teacher: Teacher,
    mae: MaskedAutoencoder,
    photos: Photos,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> float:
    """Train ``student`` on at 224 pixels in place; returns the seconds it took.

    ``photos`` are those of the training split.
    """
    teacher.eval()
    mae.eval()

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        frames = augment.random_crops(tick.rng, photos.frames[tick.indices], 224, (0.4, 1.0))
        small = F.interpolate(
            to_tensor(frames), (TEACHER_SIDE, TEACHER_SIDE), mode="bilinear", antialias=True
        )
        logits, grid, evidence = teach.ask(teacher, small)
        cells = frames.shape[1] // PATCH
        said = teach.Answers(
            logits,
            scale.standardise(teach.per_patch(grid, cells)),
            teach.per_patch(evidence, cells),
        )
        kind = KINDS[tick.step % len(KINDS)]
        patches, indices = arrive(kind, student.vit, mae, frames, tick)
        labels = torch.from_numpy(photos.labels[tick.indices])
        value, figures = distil(student, patches, indices, labels, said)
        return value, {kind: figures["right"]}

    recipe = Recipe(lr=5e-4, batch=32, weight_decay=0.05, warmup=0.05, ema=0.998)
    return fit(
        student, loss, recipe, budget, len(photos), seed=seed, resume=resume,
        checkpoint=checkpoint, title="vit 224",
    )  # fmt: skip
