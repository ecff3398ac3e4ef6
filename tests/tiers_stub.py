"""Files of DIMEC-DC and DIMEE small enough for tests: pictures that their brightness tells apart.

The embedding of a picture is what `device/embed.onnx` makes of it; the layers leave tokens as they
are, and the exits tell which of four quarters the mean brightness lies in.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

NAMES = ("dimec", "dimee")
CENTRES = np.array([32, 96, 160, 224], np.float32)
LAYERS = 2
SHARED: dict[str, Any] = {
    "mobile": 1, "edge": 2, "front": "device/front.npz", "embed": "device/embed.onnx",
    "exits": "device/exits.npz", "layer-1": "device/layer-1.onnx", "tiers": "device/tiers.npz",
    "route": "cloud",
}  # fmt: skip


def files(patches: int, width: int) -> dict[str, bytes]:
    """The bundle's files, for pictures of `patches` tokens of `width` values."""
    weights = np.repeat(2 * CENTRES[None, None] / width, width, 1) / 100
    pools = np.stack([np.full(width, level, np.float32) for level in (20, 120, 220)])
    return {
        "device/front.npz": npz(
            first=np.zeros((1, width), np.float16), places=np.zeros((patches, width), np.float16)
        ),
        "device/exits.npz": npz(
            weights=np.repeat(weights, LAYERS, 0).astype(np.float32),
            biases=np.repeat(-(CENTRES**2)[None] / 100, LAYERS, 0).astype(np.float32),
            eps=np.float32(1e-6),
        ),
        "device/layer-1.onnx": same(width),
        "device/tiers.npz": npz(means=pools, counts=np.array([5, 5, 5])),
    }


def npz(**arrays: Any) -> bytes:
    """An .npz file."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def same(width: int) -> bytes:
    """A layer that leaves "tokens" [1, n, width] as they are in "out"."""
    from onnx import TensorProto, helper

    source, target = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n", width])
        for name in ("tokens", "out")
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["tokens"], ["out"])], "layer", [source], [target]
    )
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())
