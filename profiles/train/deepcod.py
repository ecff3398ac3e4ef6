"""Trains DeepCOD's encoder, quantiser and decoder before a backbone that stays as it is.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.2 and 3.3: reconstruction first
(10), then distillation over all layers behind the split as well (11). No label is used; of the
backbone, in evaluation mode, nothing learns.

The encoder starts as the principal components of the data, which satisfy (7) as they are, and the
centres evenly spaced. Every layer's loss is divided by the mean square of what it should be, so
that layers count alike whatever their scale. `rate` pays for bits (see `server.models.deepcod`);
the paper's objective has 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import huffman, profile
from device import encoder
from profiles import amend
from profiles.export_deepcod import numpy_file, onnx_file, tflite_file
from profiles.train import publish
from profiles.train.job import Job
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos
from server.models.backbone import Layers, layers_of
from server.models.checkpoint import load_model, save_weights
from server.models.deepcod import (
    DeepCOD,
    DeepCODConfig,
    Rates,
    RatesConfig,
    constrain,
    settle,
)

U8 = npt.NDArray[np.uint8]
SAMPLE, BOOK = 128, 500
"""Frames that the encoder starts from, and that the code book is made from."""
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d}


@dataclass(frozen=True)
class Weights:
    """Of the loss's terms: `orthogonal` is the paper's alpha (10), `rate` per bit per symbol.

    `first`: the share of the training that is reconstruction alone. `step`: the distance between
    centres at the start.
    """

    orthogonal: float = 0.1
    rate: float = 0.2
    first: float = 0.25
    step: float = 1.5


def to_signal(frames: U8) -> Tensor:
    """uint8 frames [n, h, w, 3] as float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))) / 127.5 - 1


def coarser(x: Tensor, factor: int) -> Tensor:
    """The mean of every `factor` x ... x `factor` places of [b, c, *size]."""
    return POOL[x.ndim - 2](x, factor) if factor > 1 else x


@torch.no_grad()
def start(model: DeepCOD, x: Tensor, step: float) -> None:
    """Set the encoder to the principal components of `x` [n, inputs, *size], centres `step` apart.

    Components of the second moment, since the encoder has no bias.
    """
    shape = model.config
    pieces = x
    for dim in range(shape.dims):
        pieces = pieces.unfold(2 + dim, shape.kernel, shape.kernel)
    # [n, inputs, *grid, *kernel] to one row [inputs * kernel...] for each place.
    grid = range(2, 2 + shape.dims)
    order = (0, *grid, 1, *range(2 + shape.dims, pieces.ndim))
    rows = pieces.permute(*order).flatten(1 + shape.dims).flatten(0, shape.dims)
    _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    kernel = vectors.flip(1)[:, : shape.channels].T
    model.encoder.weight.copy_(kernel.reshape(model.encoder.weight.shape))
    middle = (shape.levels - 1) / 2
    model.quantizer.centres.copy_((torch.arange(shape.levels) - middle) * step)


def distilled(layers: Layers, restored: Tensor, wanted: Tensor) -> Tensor:
    """Equation 11 summed over all layers, of pictures [b, 3, h, w] in [0, 1], each normalised."""
    with torch.no_grad():
        targets = layers(wanted)
    found = layers(restored)
    losses = [F.mse_loss(y, t) / t.square().mean() for y, t in zip(found, targets, strict=True)]
    return torch.stack(losses).sum()


def train(
    config: DeepCODConfig,
    backbone: nn.Module,
    frames: Callable[[Tick], U8],
    sample: U8,
    samples: int,
    checkpoint: Path,
    budget: Budget,
    seed: int,
    resume: bool,
    weights: Weights = Weights(),
    batch: int = 16,
) -> tuple[DeepCOD, float]:
    """A trained codec, fit to be served, and the seconds it took.

    `frames`: uint8 [n, h, w, 3] of one step out of `samples`; `sample`: some, to start from.
    """
    torch.manual_seed(seed)
    model = DeepCOD(config)
    start(model, to_signal(sample), weights.step)
    constrain(model)
    layers = layers_of(backbone.eval().requires_grad_(False))

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        x = to_signal(frames(tick))
        restored, bits = model(x)
        wanted = coarser(x, config.shrink)
        error = F.mse_loss(restored, wanted)
        value = error + weights.orthogonal * model.isometry() + weights.rate * bits
        figures = {"mse": float(error.detach()), "bits": float(bits.detach())}
        if tick.progress >= weights.first:
            like = distilled(layers, (restored + 1) / 2, (wanted + 1) / 2)
            value = value + like
            figures["layers"] = float(like.detach())
        return value, figures

    recipe = Recipe(lr=2e-3, batch=batch, weight_decay=0.0, warmup=0.03, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, samples, seed=seed, resume=resume,
        checkpoint=checkpoint, title="deepcod",
    )  # fmt: skip
    return settle(model), seconds


@torch.no_grad()
def measured(model: DeepCOD, layers: Layers, photos: Photos, batch: int = 25) -> dict[str, float]:
    """On `photos`: accuracy without and with the codec, agreement, and the restoration's dB."""
    right = clean = same = 0
    error = 0.0
    for first in range(0, len(photos), batch):
        x = to_signal(photos.frames[first : first + batch])
        labels = torch.from_numpy(photos.labels[first : first + batch])
        wanted = coarser(x, model.config.shrink)
        restored = model.decode(model.encode(x))
        said, meant = (layers((each + 1) / 2)[-1].argmax(1) for each in (restored, wanted))
        right += int((said == labels).sum())
        clean += int((meant == labels).sum())
        same += int((said == meant).sum())
        error += float(F.mse_loss(restored, wanted)) * len(x)
    count = len(photos)
    decibels = 10 * float(np.log10(4 * count / error))
    return {
        "clean": clean / count,
        "accuracy": right / count,
        "agreement": same / count,
        "psnr": round(decibels, 2),
    }


@torch.no_grad()
def symbols(model: DeepCOD, frames: U8, batch: int = 25) -> U8:
    """The symbols uint8 [n, channels, *grid] of uint8 frames [n, h, w, 3]."""
    parts = [
        model.encode(to_signal(frames[first : first + batch])).numpy().astype(np.uint8)
        for first in range(0, len(frames), batch)
    ]
    return cast(U8, np.concatenate(parts))


@dataclass(frozen=True)
class Plan:
    """What a profile's stage trains: a codec for each rate, by rising bytes.

    `backbone`: the kind of the profile's model behind it; `flip`: whether a mirrored frame is as
    good as new; `default`: the rate that serves unless told otherwise.
    """

    rates: tuple[DeepCODConfig, ...]
    backbone: str
    weights: Weights = Weights()
    flip: bool = False
    minutes: float = 45
    default: int = 1

    @property
    def config(self) -> RatesConfig:
        """Of the model that holds them all."""
        return RatesConfig(tuple(asdict(each) for each in self.rates))

    def numbers(self) -> range:
        """The rates, as devices name them."""
        return range(1, len(self.rates) + 1)


def stage(job: Job, name: str, plan: Plan, frames: U8, held: Photos) -> None:
    """Train the rates of `plan` on `frames` [n, h, w, 3], measure on `held`, publish in `name`."""
    directory = publish.PROFILES / name
    (entry,) = (m for m in profile.load(directory).models.values() if m.kind == plan.backbone)
    backbone = load_model(entry.file, entry.kind, entry.config)

    def pick(tick: Tick) -> U8:
        chosen = frames[tick.indices]
        return chosen[:, :, ::-1] if plan.flip and tick.rng.random() < 0.5 else chosen

    seconds = 0.0
    whole = Rates(plan.config)
    for rate, config in zip(plan.numbers(), plan.rates, strict=True):
        model, spent = train(
            config, backbone, pick, frames[:SAMPLE], len(frames),
            job.checkpoint(f"deepcod-{rate}"), job.minutes(plan.minutes), job.seed, job.resume,
            plan.weights,
        )  # fmt: skip
        seconds += spent
        whole.codec(rate).load_state_dict(model.state_dict())
    save_weights(whole, job.weights("deepcod"))
    job.record("deepcod", seconds, held_out=export(job, plan, backbone, frames[-BOOK:], held))
    add(job, plan, directory)


def export(
    job: Job, plan: Plan, backbone: nn.Module, frames: U8, held: Photos
) -> dict[str, dict[str, float]]:
    """Write the encoders' files, with books made from `frames`; what each rate gives on `held`."""
    served = load_model(job.weights("deepcod"), "deepcod", {"rates": plan.config.rates})
    assert isinstance(served, Rates)
    figures = {}
    for rate, config in zip(plan.numbers(), plan.rates, strict=True):
        model = served.codec(rate)
        seen = symbols(model, frames).reshape(-1, config.channels, math.prod(config.grid))
        stem = job.out / f"deepcod-{rate}"
        numpy_file(model, huffman.trained(seen, config.levels), stem.with_suffix(".npz"))
        onnx_file(model, stem.with_suffix(".onnx"))
        tflite_file(model, stem.with_suffix(".tflite"))
        encode = encoder.load(stem.with_suffix(".npz"))
        size = float(np.mean([len(encode(frame)) for frame in held.frames]))
        figures[str(rate)] = {**measured(model, layers_of(backbone), held), "bytes": round(size, 1)}
    return figures


def add(job: Job, plan: Plan, directory: Path) -> None:
    """Put what `stage` left in the job's folder into the profile in `directory`."""
    kinds = ("npz", "onnx", "tflite")
    names = {
        f"{kind}-{rate}": f"deepcod-{rate}.{kind}" for rate in plan.numbers() for kind in kinds
    }
    amend.amend(
        directory,
        models={"deepcod": (job.weights("deepcod"), asdict(plan.config))},
        strategies={
            "deepcod": {
                "rate": plan.default,
                "backbone": plan.backbone,
                **{key: f"device/{file}" for key, file in names.items()},
            }
        },
        files={f"device/{file}": job.out / file for file in names.values()},
        made={"deepcod": job.recorded("deepcod")},
    )
