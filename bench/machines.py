"""How long the layers of large vision transformers take here, with random weights.

    python -m bench.machines vit_l_384 vit_b_224 --json machines.json

Time does not depend on what the weights are. All layers have one shape, so a model of a single
layer is built: its graph as a device runs it, itself as the server does. A minute or two a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from device import inference
from device.machine import Machine
from profiles.export_janus import layers_onnx
from profiles.measuring import milliseconds
from profiles.measuring.janus import knots, on_device, on_server
from server.models.vit import VisionTransformer, ViTConfig

LARGE = ViTConfig(dim=1024, depth=24, heads=16, classes=1000, image=384)
BASE = ViTConfig(dim=768, depth=12, heads=12, classes=1000, image=224)
MODELS: dict[str, tuple[ViTConfig, int]] = {
    "vit_l_384": (LARGE, 577),
    "vit_b_224": (BASE, 197),
    "vit_l_clip": (replace(LARGE, image=224, classes=400), 1569),
}
"""Name -> shape, tokens. Of a clip, 16 frames of 224 x 224 in tubelets of 2 x 16 x 16, the layers
are those of ViT-L; its embedding is taken as one picture's, a thousandth of the whole."""


def measured(name: str) -> dict[str, dict[str, Any]]:
    """{"device": ..., "server": ...} of a model, as `Machine.read` reads them."""
    config, tokens = MODELS[name]
    torch.manual_seed(0)
    vit = VisionTransformer(replace(config, depth=1)).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "vit.safetensors"
        save_file(vit.state_dict(), weights)
        embed, (block,), last = layers_onnx(vit, weights)
        device = on_device(block, config.dim, knots(tokens))
        frame = {"frame": np.zeros((1, config.image, config.image, 3), np.uint8)}
        rows = np.zeros((2, config.dim), np.float32)
        given = {"tokens": rows, "sizes": np.ones(2, np.float32)}
        first, final = inference.session(embed), inference.session(last)
        device = replace(
            device,
            first=milliseconds(lambda: first.run(["tokens"], frame)),
            last=milliseconds(lambda: final.run(["probabilities"], given)),
        )
    return {"device": device.written(), "server": on_server(vit, knots(tokens)).written()}


def load(path: Path | None, names: Sequence[str]) -> dict[str, dict[str, Machine]]:
    """Model -> side -> its machine; measured where `path` has it not, and put there."""
    known: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
    for name in names:
        if name not in known:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            known[name] = measured(name)
            if path:
                path.write_text(json.dumps(known, indent=1) + "\n")
    return {
        name: {side: Machine.read(entry) for side, entry in known[name].items()} for name in names
    }


def table(machines: dict[str, dict[str, Machine]]) -> str:
    """The lines by least squares, and what they miss."""
    lines = ["| model | side | a, ms a token | b, ms | correlation | mean error | worst |"
             " all layers, ms |", "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, sides in machines.items():
        config, tokens = MODELS[name]
        for side, machine in sides.items():
            slope, intercept = machine.fit
            whole = config.depth * float(machine.layer(tokens, 0)) + machine.first + machine.last
            lines.append(
                f"| {name} | {side} | {slope:.4f} | {intercept:.2f} | {machine.correlation:.4f} "
                f"| {machine.error:.1%} | {machine.missed.max():.1%} | {whole:.0f} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("bench.machines", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--json", type=Path, help="kept here, and read from here")
    args = parser.parse_args(argv)
    print(table(load(args.json, args.models or list(MODELS))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
