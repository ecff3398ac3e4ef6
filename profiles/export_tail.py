"""Writes a CNN's last stage and head as ONNX: with the stages before it, the whole model."""

from __future__ import annotations

from pathlib import Path

from profiles.export_deepcod import INPUT, block_onnx
from profiles.export_janus import Pointing
from profiles.graph import floats
from server.models.cnn import Block, Cnn

PROBABILITIES = "probabilities"


def tail_onnx(cnn: Cnn, weights: Path, size: tuple[int, int]) -> Path:
    """Write it beside `weights`, into which it points.

    It maps `values` float32 [1, h, w, c], what lies before the last stage of a frame of `size`, to
    `probabilities` float32 [1, classes].
    """
    g, classes = Pointing(cnn.eval(), weights), cnn.config.classes
    height, width = (-(-side // cnn.config.shrink // 16) for side in size)
    x = g.node("Transpose", [INPUT], "planes", perm=[0, 3, 1, 2])
    for place, block in enumerate(cnn.stage4):
        assert isinstance(block, Block)
        x = block_onnx(g, x, f"block{place}", block)
    x = g.reshape(g.node("GlobalAveragePool", [x], "pooled"), "vector", 1, cnn.config.widths[3])
    g.node("Softmax", [g.linear(x, "logits", cnn.head)], PROBABILITIES, axis=1)
    path = weights.with_name(f"{weights.stem}-tail.onnx")
    source = floats(INPUT, 1, height, width, cnn.config.widths[2])
    g.write(path, [source], [floats(PROBABILITIES, 1, classes)])
    return path
