"""A profile small enough for tests: the layout and key names of the real ones, random weights.

16 patches, 4 classes:

    profile = load(tiny(tmp_path))        # common.profile.load
    frame = picture(profile, seed=3)      # uint8 [64, 64, 3]

Its classifier is random, so its answers mean nothing; but they are the same for the same seed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.profile import FORMAT, Profile, sha256
from tests import codecs, offloads, tiers_stub

CLASSES = ("ant", "bee", "cat", "dog")
SIDE, PATCH = 64, 16
STRATEGIES: dict[str, dict[str, Any]] = {
    "raw": {"codec": "lz4"},
    "jpeg": {"quality": 75, "scale": 1.0},
    "amot": {"r1": 0.25, "r2": 0.25, "threshold": 0.8, "codec": "mosaic", "quality": 75},
    "local": {"model": "local", "file": "device/local.onnx"},
    "po": {
        "weights": "weights/vit.safetensors",
        "embed": "weights/vit-rows.onnx",
        "block": "weights/vit-po.onnx",
        "codec": "raw",
    },
    "mbc": {
        "weights": "weights/vit.safetensors",
        "embed": "weights/vit-rows.onnx",
        "squeeze": "device/mbc.onnx",
        "codec": "raw",
    },
    "df": {"filter": "device/df.onnx", "r": 0.25, "recovery": "mae"},
    "sdt": {"scale": 0.5, "r2": 0.25, "threshold": 1.0},
    "isr": {"scale": 0.5, "quality": 75},
    "janus": {
        "weights": "weights/vit.safetensors",
        "embed": "weights/vit-embed.onnx",
        "blocks": ["weights/vit-block1.onnx", "weights/vit-block2.onnx"],
        "last": "weights/vit-last.onnx",
        "tokens": 17,
        "split": 1,
        "alpha": 1.0,
    },
    "deepcod": codecs.PARAMS,
    "offload": offloads.PARAMS,
}
STRATEGIES |= tiers_stub.offered(STRATEGIES["janus"])


def tiny(directory: Path, seed: int = 0, **strategies: dict[str, Any]) -> Path:
    """Make the profile "tiny" in `directory` / "tiny" and return that path.

    `strategies` replace or add to the parameters in `STRATEGIES`, by name.
    """
    root = directory / "tiny"
    (root / "weights").mkdir(parents=True)
    (root / "device").mkdir()
    models = _models(root, seed)
    _local(root / "device" / "local.onnx", seed)
    files = [f"device/{name}.onnx" for name in ("local", "mbc", "df")]
    files += [*codecs.FILES, *offloads.FILES]
    for name, data in tiers_stub.files(16).items():
        (root / name).write_bytes(data)
        files.append(name)
    janus, po = STRATEGIES["janus"], STRATEGIES["po"]
    files += [po["embed"], po["block"]]
    files += [janus["weights"], janus["embed"], *janus["blocks"], janus["last"]]
    document = {
        "format": FORMAT,
        "name": "tiny",
        "task": "classify",
        "classes": CLASSES,
        "input": {"height": SIDE, "width": SIDE, "channels": 3, "patch": PATCH},
        "models": {
            key: {**model, "sha256": sha256(root / model["file"])} for key, model in models.items()
        },
        "strategies": {**STRATEGIES, **strategies},
        "device": {
            "files": [
                {"path": f, "sha256": sha256(root / f), "size": (root / f).stat().st_size}
                for f in files
            ]
        },
        "made": {"seed": seed},
    }
    (root / "profile.json").write_text(json.dumps(document, indent=2))
    return root


def picture(profile: Profile, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth random frame uint8 [H, W, 3] of the profile's input size."""
    shape = profile.manifest.input
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, shape.channels))
    tile = (-(-shape.height // 4), -(-shape.width // 4), 1)
    ramp = np.linspace(0, 40, shape.width)[None, :, None]
    full = np.kron(coarse, np.ones(tile))[: shape.height, : shape.width] * 0.8 + ramp
    return np.ascontiguousarray(full.astype(np.uint8))


def _models(root: Path, seed: int) -> dict[str, dict[str, Any]]:
    import torch
    from safetensors.torch import save_file

    from profiles.export import filter_onnx
    from profiles.export_janus import layers_onnx
    from profiles.export_split import mbc_onnx, po_onnx, rows_onnx
    from profiles.train.bottleneck import start
    from profiles.train.filter import Filter
    from server.models.bottleneck import BottleneckConfig
    from server.models.exits import Exits, ExitsConfig
    from server.models.mae import MAEConfig, MaskedAutoencoder
    from server.models.superres import SuperResConfig, SuperResolution
    from server.models.vit import VisionTransformer, ViTConfig

    vit = ViTConfig(dim=16, depth=2, heads=2, classes=len(CLASSES), image=SIDE, patch=PATCH)
    mae = MAEConfig(
        dim=16,
        depth=1,
        heads=2,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        image=SIDE,
        patch=PATCH,
    )
    superres = SuperResConfig(width=4, blocks=1)
    bottleneck = BottleneckConfig(dim=16, channels=4, levels=16, mixers=1, grid=SIDE // PATCH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier, recovery = VisionTransformer(vit), MaskedAutoencoder(mae)
        sharper = SuperResolution(superres)
        torch.nn.init.normal_(sharper.tail.weight, std=0.1)  # so that it is not bicubic
        torch.nn.init.normal_(classifier.head.weight, std=1.0)  # so that frames differ in class
        frames = np.random.default_rng(seed).integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
        squeezed, filter = start(bottleneck, classifier, frames), Filter()
        exits = Exits(ExitsConfig(dim=16, layers=1, classes=len(CLASSES)))
    device = root / "device"
    mbc_onnx(squeezed, device / "mbc.onnx")
    filter_onnx(filter, device / "df.onnx", SIDE)
    save_file(classifier.state_dict(), root / "weights" / "vit.safetensors")
    for export in (layers_onnx, rows_onnx, po_onnx):
        export(classifier, root / "weights" / "vit.safetensors")
    save_file(recovery.state_dict(), root / "weights" / "mae.safetensors")
    save_file(sharper.state_dict(), root / "weights" / "superres.safetensors")
    save_file(squeezed.state_dict(), root / "weights" / "bottleneck.safetensors")
    save_file(exits.state_dict(), root / "weights" / "exits.safetensors")
    return {
        "vit": {"kind": "vit", "file": "weights/vit.safetensors", "config": asdict(vit)},
        "mae": {"kind": "mae", "file": "weights/mae.safetensors", "config": asdict(mae)},
        "superres": {
            "kind": "superres",
            "file": "weights/superres.safetensors",
            "config": asdict(superres),
        },
        "bottleneck": {
            "kind": "bottleneck",
            "file": "weights/bottleneck.safetensors",
            "config": asdict(bottleneck),
        },
        "exits": {
            "kind": "exits",
            "file": "weights/exits.safetensors",
            "config": {"dim": 16, "layers": 1, "classes": len(CLASSES)},
        },
        **codecs.write(root, SIDE, len(CLASSES), seed),
        **offloads.write(root, SIDE, seed),
    }


def _local(path: Path, seed: int) -> None:
    """A model of the mean colour: "frame" uint8 [1, H, W, 3] -> "probabilities" float32 [1, C]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(seed)
    weight = (random.standard_normal((3, len(CLASSES))) / 32).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "local",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(CLASSES)])],
        [
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())
