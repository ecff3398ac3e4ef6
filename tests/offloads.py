"""The strategy `offload` in the tests' profile: every method at the input, some behind it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

PICTURE: list[Any] = [[0.0, 255.0, 16], [-85.0, 85.0, 11]]
SENSED: list[Any] = [
    [0.0, 4080.0, 48], [-300.0, 300.0, 17], [-2000.0, 2000.0, 48], [-300.0, 300.0, 17]
]  # fmt: skip
PARAMS: dict[str, Any] = {
    "method": "lossy",
    "backbone": "cnn",
    "stages": ["weights/cnn-stage1.onnx"],
    "weights": "weights/cnn.safetensors",
    "signals": {"input": [[1, 32, 32], [2, 16, 16]], "block-1": [[4, 8, 8]]},
    "books": "device/offload.npz",
    "autoencoder": "weights/autoencoder.onnx",
    "autoencoder_weights": "weights/autoencoder.safetensors",
    "whole": 0.6,
    "ae": {"cost": 90.0, "accuracy": 0.58},
    "settings": {
        "input": {
            "lossy": [{"scale": 1.0, "parts": PICTURE, "cost": 500.0, "accuracy": 0.59}],
            "intp": [{"scale": 0.5, "parts": PICTURE, "cost": 200.0, "accuracy": 0.5}],
            "cs": [{"scale": 1.0, "ratio": 0.5, "penalty": 5.0, "parts": SENSED, "cost": 300.0,
                    "accuracy": 0.5}],
            "jpeg": [{"scale": 0.5, "quality": 10, "cost": 400.0, "accuracy": 0.5},
                     {"scale": 1.0, "quality": 90, "cost": 900.0, "accuracy": 0.6}],
            "webp": [{"scale": 1.0, "quality": 90, "cost": 800.0, "accuracy": 0.6}],
        },
        "block-1": {
            "lossy": [{"scale": 1.0, "parts": [[0.0, 1.0, 8]], "cost": 80.0, "accuracy": 0.6}],
            "intp": [{"scale": 0.5, "parts": [[0.0, 1.0, 8]], "cost": 40.0, "accuracy": 0.4}],
            "cs": [{"scale": 1.0, "ratio": 0.5, "penalty": 0.01,
                    "parts": [[0.0, 8.0, 48], [-1.0, 1.0, 17]], "cost": 90.0, "accuracy": 0.5}],
            "jpeg": [{"quality": 90, "parts": [[0.0, 1.0, 256]], "cost": 300.0, "accuracy": 0.6}],
        },
    },
}  # fmt: skip
FILES = ("device/offload.npz", "weights/autoencoder.onnx", "weights/autoencoder.safetensors")


def write(root: Path, side: int, seed: int) -> dict[str, dict[str, Any]]:
    """Write weights and device files into the profile `root`; the profile's model."""
    import torch
    from safetensors.torch import save_file

    from common.book import trained
    from common.offloading import Setting, banded
    from profiles.offloading import tables
    from profiles.train.autoencoder import encoder_onnx
    from server.models.autoencoder import AutoEncoder, AutoEncoderConfig

    config = AutoEncoderConfig((side, side), 3, 6, (4, 4), (4, 4, 4), (1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoEncoder(config).eval()
    model.quantizer.centres.data.copy_(torch.linspace(-0.2, 0.2, config.levels))
    random = np.random.default_rng(seed)
    books = {}
    for point, methods in PARAMS["settings"].items():
        for method in ("lossy", "intp", "cs"):
            for rate, row in enumerate(methods[method], 1):
                setting = Setting.of(row)
                shapes = setting.shapes([tuple(each) for each in PARAMS["signals"][point]])
                for place, (shape, part) in enumerate(zip(shapes, setting.parts, strict=True)):
                    seen = random.integers(0, part.levels, (20, *banded(shape)), dtype=np.uint8)
                    books[f"{point}/{method}/{rate}/{place}"] = trained(seen, part.levels)
    seen = random.integers(0, config.levels, (20, config.channels, *config.grid), dtype=np.uint8)
    centres = {"ae/centres": model.quantizer.centres.detach().numpy()}
    made = tables({**books, "ae": trained(seen, config.levels)})
    np.savez_compressed(root / "device" / "offload.npz", **made, **centres)
    save_file(model.state_dict(), root / "weights" / "autoencoder.safetensors")
    encoder_onnx(model, root / "weights" / "autoencoder.safetensors")
    return {
        "autoencoder": {
            "kind": "autoencoder",
            "file": "weights/autoencoder.safetensors",
            "config": asdict(config),
        }
    }
