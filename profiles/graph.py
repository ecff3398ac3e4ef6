"""ONNX graphs built node by node, for devices: opset 17, IR 8, and a count of what they cost.

Exporters rename weights and pick newer opsets; runtimes of several years' age load these.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn

OPSET = 17
IR = 8
F32 = npt.NDArray[np.float32]


class Graph:
    """Nodes and constants as they are added; every output has the name it is given."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add an operator of one output; returns its name."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """A constant: whole numbers as int64, others as float32, kept as float16 if that is exact.

        Weights are published as float16, so all but the folded ones take half the bytes.
        """
        if value.dtype.kind == "i":
            self.constants.append(numpy_helper.from_array(value.astype(np.int64), name))
            return name
        exact = np.ascontiguousarray(value, dtype=np.float32)
        half = exact.astype(np.float16)
        if exact.ndim < 2 or not np.array_equal(half.astype(np.float32), exact):
            self.constants.append(numpy_helper.from_array(exact, name))
            return name
        self.constants.append(numpy_helper.from_array(half, f"{name}.half"))
        return self.node("Cast", [f"{name}.half"], name, to=TensorProto.FLOAT)

    def weight(self, name: str, value: Tensor) -> str:
        """A module's tensor as a constant."""
        return self.constant(name, value.detach().numpy())

    def reshape(self, x: str, output: str, *shape: int) -> str:
        """``x`` in another shape."""
        return self.node("Reshape", [x, self.constant(f"{output}.shape", np.array(shape))], output)

    def linear(self, x: str, name: str, layer: nn.Linear) -> str:
        """``layer`` on rows ``x`` [n, i]."""
        names = [self.weight(f"{name}.weight", layer.weight), self.weight(f"{name}.b", layer.bias)]
        return self.node("Gemm", [x, *names], name, transB=1)

    def layer_norm(self, x: str, name: str, layer: nn.LayerNorm) -> str:
        """``layer`` over the last axis."""
        names = [self.weight(f"{name}.weight", layer.weight), self.weight(f"{name}.b", layer.bias)]
        return self.node("LayerNormalization", [x, *names], name, axis=-1, epsilon=layer.eps)

    def gelu(self, x: str, name: str) -> str:
        """The exact GELU; runtimes fuse these nodes into one."""
        half = self.constant(f"{name}.c", np.array(0.5, np.float32))
        one = self.constant(f"{name}.one", np.array(1, np.float32))
        root = self.constant(f"{name}.root", np.array(2**0.5, np.float32))
        y = self.node("Erf", [self.node("Div", [x, root], f"{name}.scaled")], f"{name}.erf")
        y = self.node("Mul", [x, self.node("Add", [y, one], f"{name}.shifted")], f"{name}.twice")
        return self.node("Mul", [y, half], name)

    def save(
        self, path: Path, name: str, source: onnx.ValueInfoProto, target: onnx.ValueInfoProto
    ) -> int:
        """Check and write the graph from ``source`` to ``target``; returns its multiply-adds."""
        graph = helper.make_graph(self.nodes, name, [source], [target], self.constants)
        opset = helper.make_opsetid("", OPSET)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=IR)
        onnx.checker.check_model(made)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(made, path)
        return macs(made)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A graph's input or output of float32."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def pictures(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A graph's input of uint8."""
    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def folded(conv: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[F32, F32]:
    """Weight [o, i, *kernel] and bias [o] of ``conv`` followed by ``norm`` in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight * scale.view(-1, *[1] * (conv.weight.ndim - 1))
    bias = norm.bias - norm.running_mean * scale
    return weight.detach().numpy(), bias.detach().numpy()


def macs(model: onnx.ModelProto) -> int:
    """Multiply-adds of all convolutions and matrix products, for a batch of one."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {c.name: tuple(c.dims) for c in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value or 1 for d in sizes)
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        given, out = shapes[node.input[1 if node.op_type == "Conv" else 0]], shapes[node.output[0]]
        inner = prod(given[1:]) if node.op_type == "Conv" else given[-1]
        total += inner * prod(out)
    return total
