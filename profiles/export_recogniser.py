"""Writes a recogniser of sounds for the device as ONNX: features in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import nn

from profiles.graph import Graph, floats, folded, pictures
from server.models.recogniser import MEAN, STD, Block, Recogniser

INPUT, OUTPUT = "frame", "probabilities"


def recogniser_onnx(model: Recogniser, frames: int, path: Path) -> int:
    """Write ``model`` to ``path``; returns its multiply-adds.

    The graph maps ``frame`` uint8 [1, bands, frames, 1], features, to ``probabilities`` float32
    [1, classes].
    """
    g, config = Graph(), model.eval().config
    x = _stem(g, model)
    for place, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        x = _block(g, x, f"block{place}", block)
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pooled")], "vector")
    g.node("Softmax", [g.linear(x, "logits", model.head)], OUTPUT, axis=1)
    source = pictures(INPUT, 1, config.bands, frames, 1)
    return g.save(path, "recogniser", source, floats(OUTPUT, 1, config.classes))


def _stem(g: Graph, model: Recogniser) -> str:
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = g.node("Squeeze", [x, g.constant("last", np.array([3]))], "features")
    scale = g.constant("scale", np.array(1 / 255 / STD, np.float32))
    shift = g.constant("shift", np.array(MEAN / STD, np.float32))
    x = g.node("Sub", [g.node("Mul", [x, scale], "scaled"), shift], "normalised")
    return g.node("Relu", [_conv(g, x, "stem", model.conv, model.norm)], "stem.relu")


def _block(g: Graph, x: str, name: str, block: Block) -> str:
    y = _conv(g, x, f"{name}.1", block.conv1, block.norm1)
    y = _conv(g, g.node("Relu", [y], f"{name}.relu"), f"{name}.2", block.conv2, block.norm2)
    around = _conv(g, x, f"{name}.around", block.shortcut, block.norm)
    return g.node("Relu", [g.node("Add", [y, around], f"{name}.sum")], name)


def _conv(g: Graph, x: str, name: str, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> str:
    weight, bias = folded(conv, norm)
    names = [g.constant(f"{name}.w", weight), g.constant(f"{name}.b", bias)]
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    pads = [kernel // 2] * 2
    return g.node("Conv", [x, *names], name, kernel_shape=[kernel], strides=[stride], pads=pads)
