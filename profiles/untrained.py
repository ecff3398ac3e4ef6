"""Profiles of published shapes, to time them, or to serve a public checkpoint that lies here.

    python -m profiles.untrained vit-large-384 DIRECTORY
    python -m profiles.untrained vit-base DIRECTORY --checkpoint FILE --classes names.txt

The first has random weights: how long a layer takes does not depend on what it says. The names of
the weights are timm's, so a checkpoint of timm's, of MAE's or of transformers' files fits the
shape that it is of. DIRECTORY is a whole profile, which `server --profile DIRECTORY` serves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from common.errors import ConfigError
from profiles import export_janus
from profiles.train.publish import digest
from server.models.checkpoint import load_model, save_weights
from server.models.vit import VisionTransformer, ViTConfig

HALF = (0.5, 0.5, 0.5)
SHAPES = {
    "vit-base": ViTConfig(dim=768, depth=12, heads=12, classes=1000, mean=HALF, std=HALF),
    "vit-large-384": ViTConfig(
        dim=1024, depth=24, heads=16, classes=1000, image=384, mean=HALF, std=HALF
    ),
    "vit-large-clips": ViTConfig(
        dim=1024,
        depth=24,
        heads=16,
        classes=400,
        pool="avg",
        frames=16,
        tubelet=2,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    ),
}
"""ViT-B and ViT-L@384 (Dosovitskiy et al. 2021; timm's vit_base_patch16_224 and
vit_large_patch16_384), and the ViT-L over 16 frames of Feichtenhofer et al. 2022: the models of
Janus's experiments."""


def make(
    shape: str, directory: Path, checkpoint: Path | None = None, classes: Sequence[str] = ()
) -> Path:
    """Write the profile of `shape` to `directory`; returns it.

    `checkpoint`: weights to serve in place of random ones; `classes`: their names, numbers
    unless given. Raises ConfigError: a checkpoint or a number of classes that does not fit.
    """
    config = SHAPES[shape]
    if classes:
        config = replace(config, classes=len(classes))
    if checkpoint is not None:
        vit = load_model(checkpoint, "vit", config)
    else:
        torch.manual_seed(0)
        vit = VisionTransformer(config)
    weights = directory / "weights" / "vit.safetensors"
    save_weights(vit, weights)
    profile = {
        "format": 1,
        "name": directory.name,
        "task": "classify" if config.frames == 1 else "watch",
        "classes": list(classes) or [str(number) for number in range(config.classes)],
        "input": {
            "height": config.frames * config.image,
            "width": config.image,
            "channels": 3,
            "patch": config.patch,
        },
        "models": {
            "vit": {
                "kind": "vit",
                "file": "weights/vit.safetensors",
                "sha256": digest(weights),
                "config": asdict(config),
            }
        },
        "strategies": {"raw": {"codec": "zstd"}},
        "device": {"files": []},
        "made": {"weights": str(checkpoint.name) if checkpoint else "random, to be timed only"},
    }
    (directory / "profile.json").write_text(json.dumps(profile, indent=2) + "\n")
    export_janus.publish(directory)
    return directory


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one profile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a local .safetensors or .pth file")
    parser.add_argument("--classes", type=Path, help="a text file, one name a line")
    given = parser.parse_args(arguments)
    names = given.classes.read_text().split("\n") if given.classes else []
    try:
        made = make(given.shape, given.directory, given.checkpoint, list(filter(None, names)))
    except (ConfigError, OSError) as error:
        parser.error(str(error))
    print(f"{made}: serve it with ./run server --profile {made}")


if __name__ == "__main__":
    main()
