"""Trains Offload-AE+, the heavier auto-encoder that DeepCOD is compared with, and exports it.

Its objective is that of its authors (Mentzer et al. 2018): the restoration's error and the bits of
the symbols. It sees no backbone; that is what DeepCOD's distillation is measured against.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from profiles import amend
from profiles.graph import floats, macs, pictures
from profiles.pointing import Pointing
from profiles.train import publish
from profiles.train.deepcod import coarser, to_signal
from profiles.train.job import Job
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos
from server.models.autoencoder import AutoEncoder, AutoEncoderConfig, Residual
from server.models.checkpoint import load_model, save_weights

U8 = npt.NDArray[np.uint8]
RATE = 0.006
"""What a bit of a symbol may cost of the mean square error, of pictures in [-1, 1]."""
STEP = 1.0
"""Distance between centres at the start."""
CROP = 112
"""Pixels to a side of what a step sees of a frame: all layers are convolutions, and see no more."""
FILE = "weights/autoencoder.onnx"
WEIGHTS = "weights/autoencoder.safetensors"
"""The device's encoder, and what it points into: the server's own file, which it needs too."""
FRAME, SIGNAL = "frame", "signal"


def train(
    config: AutoEncoderConfig, frames: U8, checkpoint: Path, budget: Budget, seed: int, resume: bool
) -> tuple[AutoEncoder, float]:
    """A trained model, fit to be served, and the seconds it took. `frames`: uint8 [n, H, W, 3]."""
    torch.manual_seed(seed)
    model = AutoEncoder(config)
    middle, side = (config.levels - 1) / 2, min(CROP, *frames.shape[1:3])
    with torch.no_grad():
        model.quantizer.centres.copy_((torch.arange(config.levels) - middle) * STEP)

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        top, left = (int(tick.rng.integers(each - side + 1)) for each in frames.shape[1:3])
        chosen = frames[tick.indices, top : top + side, left : left + side]
        x = to_signal(chosen[:, :, ::-1] if tick.rng.random() < 0.5 else chosen)
        restored, bits = model(x)
        error = F.mse_loss(restored, coarser(x, 2))
        figures = {"mse": float(error.detach()), "bits": float(bits.detach())}
        return error + RATE * bits, figures

    recipe = Recipe(lr=2e-3, batch=16, weight_decay=0.0, warmup=0.03, ema=0.995)
    seconds = fit(
        model, loss, recipe, budget, len(frames), seed=seed, resume=resume,
        checkpoint=checkpoint, title="autoencoder",
    )  # fmt: skip
    with torch.no_grad():
        centres = model.quantizer.centres
        centres.copy_(centres.sort().values)
    return model.eval(), seconds


def encoder_onnx(model: AutoEncoder, weights: Path) -> tuple[Path, int]:
    """Write the encoder beside `weights`: where it is, and its multiply-adds.

    It takes `frame` uint8 [1, H, W, 3] to `signal` float32 [1, C, H/8, W/8].
    """
    g = Pointing(model, weights)
    scale = g.constant("scale", np.array(1 / 127.5, np.float32))
    one = g.constant("one", np.array(1, np.float32))
    x = g.node("Cast", [FRAME], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    x = g.node("Sub", [g.node("Mul", [x, scale], "scaled"), one], "normalised")
    last = len(model.encoder) - 1
    for place, layer in enumerate(model.encoder):
        name = SIGNAL if place == last else f"layer{place}"
        if isinstance(layer, nn.Conv2d):
            x = _conv(g, x, name, layer)
        elif isinstance(layer, Residual):
            y = g.node("Relu", [_conv(g, x, f"{name}.conv1", layer.conv1)], f"{name}.relu")
            x = g.node("Add", [x, _conv(g, y, f"{name}.conv2", layer.conv2)], name)
        else:
            x = g.node("Relu", [x], name)
    shape = model.config
    path = weights.with_suffix(".onnx")
    source, target = (
        pictures(FRAME, 1, *shape.size, 3),
        floats(SIGNAL, 1, shape.channels, *shape.grid),
    )
    return path, macs(g.write(path, [source], [target]))


def _conv(g: Pointing, x: str, name: str, layer: nn.Conv2d) -> str:
    assert layer.bias is not None
    names = [g.weight(f"{name}.weight", layer.weight), g.weight(f"{name}.b", layer.bias)]
    pad = layer.kernel_size[0] // 2
    return g.node("Conv", [x, *names], name, strides=list(layer.stride), pads=[pad] * 4)


@torch.no_grad()
def fidelity(model: AutoEncoder, frames: U8, batch: int = 25) -> float:
    """Peak signal-to-noise ratio in dB of the pictures at half size."""
    error = 0.0
    for first in range(0, len(frames), batch):
        x = to_signal(frames[first : first + batch])
        error += float(F.mse_loss(model.decode(model.encode(x)), coarser(x, 2))) * len(x)
    return round(10 * math.log10(4 * len(frames) / error), 2)


def stage(job: Job, name: str, config: AutoEncoderConfig, frames: U8, held: Photos) -> None:
    """Train on `frames`, measure on `held`, and add the model and its encoder to profile `name`.

    `profiles.offloading` makes the strategy that takes them.
    """
    model, seconds = train(
        config, frames, job.checkpoint("autoencoder"), job.minutes(40), job.seed, job.resume
    )
    save_weights(model, job.weights("autoencoder"))
    served = load_model(job.weights("autoencoder"), "autoencoder", asdict(config))
    assert isinstance(served, AutoEncoder)
    file, cost = encoder_onnx(served, job.weights("autoencoder"))
    job.record("autoencoder", seconds, psnr=fidelity(served, held.frames), device_macs=cost)
    amend.amend(
        publish.PROFILES / name,
        models={"autoencoder": (job.weights("autoencoder"), asdict(config))},
        files={FILE: file, WEIGHTS: job.weights("autoencoder")},
        made={"autoencoder": job.recorded("autoencoder")},
    )
