"""Writes the device's model as ONNX, built node by node.

Opset 17 and IR 8, so that runtimes of several years' age load it. The graph takes the frame as a
camera gives it and does the downsampling and normalisation itself, so the device needs no image
code of its own. Batch norms are folded into the convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from profiles.train.local import LAYERS, LocalNet

OPSET = 17
IR = 8
INPUT, OUTPUT = "frame", "probabilities"


def folded(
    conv: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight [o, i, h, w] and bias [o] of ``conv`` followed by ``norm`` in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * scale
    return weight.detach().numpy(), bias.detach().numpy()


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.NDArray[np.float32]) -> str:
        array = np.ascontiguousarray(value, dtype=np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def local_onnx(model: LocalNet, path: Path) -> None:
    """Write ``model`` to ``path``.

    The graph maps ``frame`` uint8 [n, 224, 224, 3] to ``probabilities`` float32 [n, classes].
    """
    model.eval()
    g = _Graph()
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    x = g.node("AveragePool", [x], "half", kernel_shape=[2, 2], strides=[2, 2])
    scale = g.constant("scale", np.array(4 / 255, np.float32))
    shift = g.constant("shift", np.array(2, np.float32))
    x = g.node("Mul", [x, scale], "scaled")
    x = g.node("Sub", [x, shift], "normalised")
    for place, (inputs, outputs, stride) in enumerate(LAYERS):
        conv, norm = model.convs[place], model.norms[place]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias = folded(conv, norm)
        names = [g.constant(f"w{place}", weight), g.constant(f"b{place}", bias)]
        y = g.node(
            "Conv", [x, *names], f"conv{place}", strides=[stride] * 2, pads=[1] * 4,
            kernel_shape=[3, 3],
        )  # fmt: skip
        y = g.node("Relu", [y], f"relu{place}")
        x = g.node("Add", [x, y], f"sum{place}") if inputs == outputs and stride == 1 else y
    x = g.node("GlobalAveragePool", [x], "pooled")
    x = g.node("Flatten", [x], "vector")
    head = [
        g.constant("head.weight", model.head.weight.detach().numpy()),
        g.constant("head.bias", model.head.bias.detach().numpy()),
    ]
    x = g.node("Gemm", [x, *head], "logits", transB=1)
    g.node("Softmax", [x], OUTPUT, axis=1)
    graph = helper.make_graph(
        g.nodes,
        "local",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", 224, 224, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", model.head.out_features])],
        g.constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path)
