"""Exits for a published vision transformer, and with them DIMEC-DC and DIMEE on its pictures.

The transformer stays as it is, as DeeBERT (Xin et al. 2020) has it: what the exits see behind each
layer is computed once, and they learn from that. So every exit learns the same whatever others
there are: DIMEC-DC's are some of DIMEE's. Pools come from photographs held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import profile
from profiles.amend import amend
from profiles.pools import F32, Costs, Layers, Split
from profiles.train import pooling, publish
from profiles.train.computing import classifier
from profiles.train.job import Job
from profiles.train.loop import batch_indices
from profiles.train.patchwork import to_patches
from profiles.train.photos import Photos
from server.models.checkpoint import load_model, save_weights
from server.models.exits import Exits, ExitsConfig, look
from server.models.vit import VisionTransformer

EXITS = "device/exits.npz"
EPOCHS, BATCH, RATE = 5, 32, 2e-3
"""As the papers train: five epochs, of which each one is noted for the cartography."""
JANUS = ("weights", "embed", "blocks", "last")
"""The files of the transformer's layers, which the profile has for the strategy janus."""


@torch.no_grad()
def tokens(vit: VisionTransformer, photos: Photos) -> tuple[Tensor, Tensor, F32]:
    """What exits see behind each layer [depth, n, 2 dim], logits [n, classes], embeddings.

    An embedding float32 [n, dim] is the mean of a picture's patches, positions added.
    """
    behind, logits, means = [], [], []
    for start in tqdm(range(0, len(photos), 25), desc="tokens", mininterval=5):
        x = vit.embed(to_patches(photos.frames[start : start + 25]))
        means.append(x[:, 1:].mean(1))
        each = []
        for block in vit.blocks:
            x = block(x)
            each.append(look(x))
        behind.append(torch.stack(each))
        logits.append(vit.forward_head(x))
    return torch.cat(behind, 1), torch.cat(logits), torch.cat(means).numpy()


def train(
    seen: Tensor, labels: npt.NDArray[np.int64], held: Tensor, seed: int
) -> tuple[Exits, list[F32]]:
    """Exits behind all layers but the last, and what they say of ``held`` after every epoch.

    ``seen`` and ``held`` are of `tokens`, [depth, n, 2 dim]; each note is [depth - 1, n, classes].
    """
    torch.manual_seed(seed)
    depth, count, dim = seen.shape
    exits = Exits(ExitsConfig(dim // 2, depth - 1, int(labels.max()) + 1))
    optimiser = torch.optim.AdamW(exits.parameters(), lr=RATE, weight_decay=0.05)
    target, steps = torch.from_numpy(labels), max(1, count // BATCH)
    notes = []
    for epoch in range(EPOCHS):
        for place in range(steps):
            share = (epoch * steps + place) / (EPOCHS * steps)
            optimiser.param_groups[0]["lr"] = RATE * (1 - share)
            rows = torch.from_numpy(batch_indices(count, BATCH, seed, epoch * steps + place))
            loss = torch.stack([F.cross_entropy(each, target[rows])
                                for each in _logits(exits, seen[:, rows])]).sum()  # fmt: skip
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        notes.append(probabilities(exits, held))
    return exits, notes


@torch.no_grad()
def probabilities(exits: Exits, seen: Tensor) -> F32:
    """What the exits say of what they see [depth, n, 2 dim]: float32 [depth - 1, n, classes]."""
    out: F32 = torch.stack([each.softmax(-1) for each in _logits(exits, seen)]).numpy()
    return out


def told(exits: Exits, seen: tuple[Tensor, Tensor, F32], labels: npt.NDArray[np.int64]) -> Split:
    """The split of photographs of which `tokens` made ``seen``: what every exit says of them."""
    behind, logits, embeddings = seen
    every = np.concatenate((probabilities(exits, behind), logits.softmax(-1).numpy()[None]))
    return Split(every, labels, embeddings)


def _logits(exits: Exits, seen: Tensor) -> list[Tensor]:
    return [exits.classify(seen[layer - 1], layer) for layer in range(1, exits.config.layers + 1)]


def exits_npz(exits: Exits, layers: int, path: Path) -> None:
    """The exits behind the first ``layers`` layers, for ``device.tiers.Exits``."""
    norms = [norm for norm in exits.norms if isinstance(norm, nn.LayerNorm)][:layers]
    heads = [head for head in exits.heads if isinstance(head, nn.Linear)][:layers]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, eps=np.float32(exits.config.eps),
        weights=_half([head.weight.T for head in heads]),
        biases=_half([head.bias for head in heads]),
        norms=_half([torch.stack((norm.weight, norm.bias)) for norm in norms]),
    )  # fmt: skip


def _half(values: Sequence[Tensor]) -> npt.NDArray[np.float16]:
    return np.asarray(torch.stack(tuple(values)).detach().half().numpy())


def stage(
    job: Job, name: str, photos: Photos, held: Photos, layers: Mapping[str, Layers], costs: Costs,
    quality: int,
) -> None:  # fmt: skip
    """Train the exits of the published profile ``name``, and add both strategies to it.

    ``layers`` by strategy; ``quality``: of the JPEG in which a picture leaves the device.
    """
    directory, (vit, _) = publish.PROFILES / name, classifier(name)
    seen, shown = tokens(vit, photos), tokens(vit, held)
    made, notes = train(seen[0], photos.labels, shown[0], job.seed)
    save_weights(made, job.weights("exits"))
    config = asdict(made.config)
    served = load_model(job.weights("exits"), "exits", config)
    assert isinstance(served, Exits)
    exits_npz(served, max(each.mobile for each in layers.values()), job.out / EXITS)
    split = told(served, shown, held.labels)
    right = split.right.mean(1)
    job.record("exits", 0.0, frames=len(photos), held_out=[round(float(x), 4) for x in right])
    print("right behind each layer:", right.round(3))
    janus = profile.load(directory).manifest.params("janus")
    strategies = {
        each: {
            "mobile": its.mobile, "edge": its.edge, "exits": EXITS, "quality": quality,
            **{key: janus[key] for key in JANUS}, "blocks": list(janus["blocks"][: its.mobile]),
        }
        for each, its in layers.items()
    }  # fmt: skip
    amend(
        directory, models={"exits": (job.weights("exits"), config)}, strategies=strategies,
        files={EXITS: job.out / EXITS}, made={"exits": job.recorded("exits")},
    )  # fmt: skip
    truth = np.stack([_truth(note, held.labels) for note in notes])
    pooling.stage(
        directory, job.out, split, np.arange(len(held)),
        {each: truth[:, its.mobile - 1] for each, its in layers.items()}, layers, costs, job.seed,
    )  # fmt: skip


def _truth(rows: F32, labels: npt.NDArray[np.int64]) -> F32:
    """The true label's probability [exits, n] of what the exits said [exits, n, classes]."""
    return rows[:, np.arange(len(labels)), labels]
