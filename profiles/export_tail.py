"""Writes a CNN's last stages and head as ONNX: with the stages before them, the whole model."""

from __future__ import annotations

from pathlib import Path

from profiles.export_deepcod import INPUT, block_onnx, shapes_of
from profiles.graph import floats
from profiles.pointing import Pointing
from server.models.cnn import Block, Cnn

PROBABILITIES = "probabilities"


def tail_onnx(cnn: Cnn, weights: Path, size: tuple[int, int], count: int) -> Path:
    """Write what follows the first `count` stages (1 or more) beside `weights`, where it points.

    It maps `values` float32 [1, h, w, c], what those stages make of a frame of `size`, to
    `probabilities` float32 [1, classes].
    """
    g, classes = Pointing(cnn.eval(), weights), cnn.config.classes
    x = g.node("Transpose", [INPUT], "planes", perm=[0, 3, 1, 2])
    for number in range(count, len(cnn.points)):
        for place, block in enumerate(getattr(cnn, f"stage{number}")):
            assert isinstance(block, Block)
            x = block_onnx(g, x, f"stage{number}.{place}", block)
    x = g.reshape(g.node("GlobalAveragePool", [x], "pooled"), "vector", 1, cnn.config.widths[3])
    g.node("Softmax", [g.linear(x, "logits", cnn.head)], PROBABILITIES, axis=1)
    path = weights.with_name(f"{weights.stem}-tail.onnx")
    g.write(
        path, [floats(INPUT, *shapes_of(cnn, size)[count])], [floats(PROBABILITIES, 1, classes)]
    )
    return path
