"""Trains the bottleneck of MBC against a frozen classifier; no labels are needed.

It starts as the principal components of the tokens, which is the best that a linear bottleneck can
do for their squared error, and is then trained as BottleFit (Matsubara et al. 2022, section III-B)
is: to restore the features at the split and the frozen model's answers behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.patchwork import to_patches
from profiles.train.photos import Photos
from server.models.bottleneck import Bottleneck, BottleneckConfig
from server.models.vit import VisionTransformer

SPREAD = 2.5
"""Standard deviations of a component to either side of its mean that the levels span at first."""

U8 = npt.NDArray[np.uint8]
Frames = Callable[[Tick], U8]
"""Makes the frames uint8 [n, 224, 224, 3] of one step."""


def train(
    config: BottleneckConfig,
    vit: VisionTransformer,
    frames: Frames,
    first: U8,
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
) -> tuple[Bottleneck, float]:
    """A bottleneck for ``vit``, and the seconds it took.

    ``first``: frames uint8 [n, 224, 224, 3] whose principal components it starts from.
    """
    torch.manual_seed(seed)
    vit.requires_grad_(False).eval()
    model = start(config, vit, first)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            wanted = vit.embed(to_patches(frames(tick)))
            taught = answers(vit, wanted)
            plain = (wanted - vit.pos_embed)[:, 1:]
        given = model(plain)
        said = answers(vit, given)
        features = ((given - wanted)[:, 1:].square() / plain.var((0, 1))).mean()
        apart = F.kl_div(F.log_softmax(said, 1), F.softmax(taught, 1), reduction="batchmean")
        return features + 2 * apart, {
            "features": float(features.detach()),
            "apart": float(apart.detach()),
            "agree": float((said.argmax(1) == taught.argmax(1)).float().mean()),
        }

    recipe = Recipe(lr=1e-3, batch=32, weight_decay=0.0, warmup=0.05, ema=0.98)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="mbc",
    )  # fmt: skip
    return model, seconds


@torch.no_grad()
def start(config: BottleneckConfig, vit: VisionTransformer, frames: U8) -> Bottleneck:
    """The bottleneck that keeps the first principal components, each with the same quantiser."""
    model = Bottleneck(config)
    parts = [vit.embed(to_patches(frames[i : i + 50])) for i in range(0, len(frames), 50)]
    tokens = (torch.cat(parts) - vit.pos_embed)[:, 1:].flatten(0, 1)
    mean = tokens.mean(0)
    values, vectors = torch.linalg.eigh((tokens - mean).T.cov())
    values = values.clamp_min(1e-6 * float(values[-1]))  # those of no component may be negative
    axes = vectors[:, -config.channels :].T
    half = (config.levels - 1) / 2
    step = (SPREAD / half * values[-config.channels :].sqrt()).unsqueeze(1)
    model.squeeze.weight.copy_(axes / step)
    model.squeeze.bias.copy_(half - (axes / step) @ mean)
    model.widen.weight.copy_((axes * step).T)
    model.widen.bias.copy_(mean - half * (axes * step).sum(0))
    for mixer in model.mixers:
        nn.init.zeros_(mixer.proj.weight)  # type: ignore[union-attr, arg-type]
    model.pos_embed.copy_(vit.pos_embed)
    model.pos_embed[:, :1] += vit.cls_token
    return model


def answers(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """The logits of ``vit`` [b, classes] for the tokens [b, 1+n, dim] that its embedding gives."""
    return vit.forward_head(vit.forward_features(tokens)[0])


@torch.no_grad()
def accuracy(model: Bottleneck, vit: VisionTransformer, photos: Photos) -> dict[str, float]:
    """Top-1 accuracy through the bottleneck, and mean entropy of a frame's symbols in bytes."""
    right, bits = 0, 0.0
    for i in range(0, len(photos), 50):
        plain = (vit.embed(to_patches(photos.frames[i : i + 50])) - vit.pos_embed)[:, 1:]
        symbols = model.encode(plain).round()
        said = answers(vit, model.decode(symbols)).argmax(1).numpy()
        right += int((said == photos.labels[i : i + 50]).sum())
        for frame in symbols:
            share = torch.bincount(frame.flatten().long()) / frame.numel()
            bits -= frame.numel() * float((share * share.clamp_min(1e-9).log2()).sum())
    return {"accuracy": right / len(photos), "entropy_bytes": bits / 8 / len(photos)}
