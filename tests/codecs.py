"""DeepCOD in the tests' profile: a CNN and codecs of random weights, two rates at one point."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

PARAMS: dict[str, Any] = {
    "point": "input",
    "rate": 1,
    "backbone": "cnn",
    "weights": "weights/cnn.safetensors",
    "points": [
        {
            "name": "input",
            "rates": [
                {"npz": "device/input-1.npz", "bytes": 40.0, "accuracy": 0.5},
                {"npz": "device/input-2.npz", "bytes": 60.0, "accuracy": 0.6},
            ],
        },
        {
            "name": "block-1",
            "stage": {"onnx": "weights/cnn-stage1.onnx"},
            "rates": [{"npz": "device/block-1-1.npz", "bytes": 50.0, "accuracy": 0.6}],
        },
    ],
}
FILES = (
    "device/input-1.npz",
    "device/input-2.npz",
    "device/block-1-1.npz",
    "weights/cnn-stage1.onnx",
    "weights/cnn.safetensors",
)
POINTS = ("input", "input", "block-1")
SHAPES = (
    {"size": [32, 32], "channels": 3, "levels": 4, "widths": [8, 4, 4]},
    {"size": [32, 32], "channels": 5, "levels": 4, "widths": [8, 4, 4]},
    {"size": [8, 8], "inputs": 4, "channels": 3, "kernel": 2, "levels": 4, "widths": [8, 4]},
)


def write(root: Path, side: int, classes: int, seed: int) -> dict[str, dict[str, Any]]:
    """Write weights and device files into the profile `root`; the profile's models."""
    import torch
    from safetensors.torch import save_file

    from common.columns import trained
    from profiles.export_deepcod import numpy_file, stages_onnx
    from server.models.cnn import Cnn, CnnConfig
    from server.models.deepcod import Rates, RatesConfig

    cnn = CnnConfig(classes, (4, 4, 4, 4), depths=(1, 1, 1, 1), shrink=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codecs, backbone = Rates(RatesConfig(SHAPES, POINTS)), Cnn(cnn).eval()
        torch.nn.init.normal_(backbone.head.weight, std=1.0)
    device = root / "device"
    for point, rate in (("input", 1), ("input", 2), ("block-1", 1)):
        made, shape = codecs.codec(rate, point), codecs.codec(rate, point).config
        made.quantizer.centres.data.copy_(torch.linspace(-1, 1, shape.levels))
        random = np.random.default_rng(seed)
        seen = random.integers(0, shape.levels, (20, shape.channels, *shape.grid), dtype=np.uint8)
        frames = point == "input"
        path = device / f"{point}-{rate}.npz"
        numpy_file(made, trained(seen, shape.levels), path, frames, 2 if frames else 1)
    save_file(backbone.state_dict(), root / "weights" / "cnn.safetensors")
    stages_onnx(backbone, root / "weights" / "cnn.safetensors", (side, side), 1)
    save_file(codecs.state_dict(), root / "weights" / "deepcod.safetensors")
    return {
        "cnn": {"kind": "cnn", "file": "weights/cnn.safetensors", "config": asdict(cnn)},
        "deepcod": {
            "kind": "deepcod",
            "file": "weights/deepcod.safetensors",
            "config": {"rates": SHAPES, "points": POINTS},
        },
    }
