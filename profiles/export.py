"""Writes the small convolutional models of the device as ONNX, built node by node.

The graphs take the frame as a camera gives it and do the downsampling and normalisation themselves,
so the device needs no image code of its own. Batch norms are folded into the convolutions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import nn

from profiles.graph import Graph, floats, folded, pictures
from profiles.train import filter, local

INPUT, OUTPUT, CRUCIAL = "frame", "probabilities", "crucial"


def local_onnx(model: local.LocalNet, path: Path) -> None:
    """Write ``model`` to ``path``.

    The graph maps ``frame`` uint8 [n, 224, 224, 3] to ``probabilities`` float32 [n, classes].
    """
    g = Graph()
    x = _convolved(g, model, local.LAYERS)
    x = g.node("GlobalAveragePool", [x], "pooled")
    x = g.node("Flatten", [x], "vector")
    x = g.linear(x, "logits", model.head)
    g.node("Softmax", [x], OUTPUT, axis=1)
    source, target = pictures(INPUT, "n", 224, 224, 3), floats(OUTPUT, "n", model.head.out_features)
    g.save(path, "local", source, target)


def filter_onnx(model: filter.Filter, path: Path, side: int = 224) -> int:
    """Write ``model`` to ``path``; returns its multiply-adds.

    The graph maps ``frame`` uint8 [1, side, side, 3] to ``crucial`` float32 [1, N], the probability
    that a patch matters.
    """
    g, patches = Graph(), (side // 16) ** 2
    x = _convolved(g, model, filter.LAYERS)
    assert model.head.bias is not None
    head = [g.weight("head.weight", model.head.weight), g.weight("head.b", model.head.bias)]
    x = g.node("Sigmoid", [g.node("Conv", [x, *head], "logits")], "map")
    g.reshape(x, CRUCIAL, 1, patches)
    return g.save(path, "filter", pictures(INPUT, 1, side, side, 3), floats(CRUCIAL, 1, patches))


def _convolved(
    g: Graph, model: local.LocalNet | filter.Filter, layers: tuple[tuple[int, int, int], ...]
) -> str:
    """The frame halved and normalised, then ``layers`` of ``model``."""
    model.eval()
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    x = g.node("AveragePool", [x], "half", kernel_shape=[2, 2], strides=[2, 2])
    scale = g.constant("scale", np.array(4 / 255, np.float32))
    shift = g.constant("shift", np.array(2, np.float32))
    x = g.node("Mul", [x, scale], "scaled")
    x = g.node("Sub", [x, shift], "normalised")
    for place, (inputs, outputs, stride) in enumerate(layers):
        conv, norm = model.convs[place], model.norms[place]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias = folded(conv, norm)
        # Rounded, they take half the bytes; answers move by some thousandths.
        weight = weight.astype(np.float16).astype(np.float32)
        names = [g.constant(f"w{place}", weight), g.constant(f"b{place}", bias)]
        y = g.node(
            "Conv", [x, *names], f"conv{place}", strides=[stride] * 2, pads=[1] * 4,
            kernel_shape=[3, 3],
        )  # fmt: skip
        y = g.node("Relu", [y], f"relu{place}")
        x = g.node("Add", [x, y], f"sum{place}") if inputs == outputs and stride == 1 else y
    return x
