"""Writes DeepCOD's encoder for the device: numpy arrays, an ONNX graph, a TFLite graph.

The pixels' scaling is folded into the convolution, so each takes the frame as a camera gives it.
TFLite is written through the schema's own classes, which LiteRT brings along, without TensorFlow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from profiles.graph import Graph, floats, pictures
from server.models.deepcod import DeepCOD

INPUT, OUTPUT = "frame", "signal"
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def folded(model: DeepCOD) -> tuple[F32, F32]:
    """Kernel [C, 3, k, k] and bias [C] of the encoder, for pixels 0-255 instead of -1 to 1."""
    weight = model.encoder.weight.detach().numpy().astype(np.float32)
    return weight / np.float32(127.5), -weight.sum(axis=(1, 2, 3), dtype=np.float32)


def numpy_file(model: DeepCOD, lengths: U8, path: Path) -> None:
    """Write encoder, centres and code book to `path`, as `device.encoder` reads them."""
    kernel, bias = folded(model)
    c, channels, side, _ = kernel.shape
    rows = kernel.transpose(2, 3, 1, 0).reshape(side, side * channels, c)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        kernel=rows.astype(np.float32),
        bias=bias.astype(np.float32),
        centres=model.quantizer.centres.detach().numpy().astype(np.float32),
        lengths=lengths,
    )


def onnx_file(model: DeepCOD, path: Path) -> None:
    """Write the convolution: `frame` uint8 [1, H, W, 3] to `signal` float32 [1, C, h, w]."""
    kernel, bias = folded(model)
    side = model.config.kernel
    g = Graph()
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    names = [g.constant("kernel", kernel), g.constant("bias", bias)]
    g.node("Conv", [x, *names], OUTPUT, kernel_shape=[side] * 2, strides=[side] * 2)
    source = pictures(INPUT, 1, *model.config.size, 3)
    g.save(path, "encoder", source, floats(OUTPUT, 1, model.config.channels, *model.config.grid))


def tflite_file(model: DeepCOD, path: Path) -> None:
    """Write the convolution: `frame` uint8 [1, H, W, 3] to `signal` float32 [1, h, w, C].

    Raises ValueError where LiteRT is not installed.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise ValueError("the TFLite encoder needs pip install 'offboard[device-tflite]'") from None
    kernel, bias = folded(model)
    height, width = model.config.size
    side = kernel.shape[2]
    # A kernel is [C, row, column, channel] there.
    constants = [np.ascontiguousarray(kernel.transpose(0, 2, 3, 1)), bias]
    buffers = [schema.BufferT() for _ in range(1 + len(constants))]
    for buffer, values in zip(buffers[1:], constants, strict=True):
        buffer.data = np.frombuffer(values.astype("<f4").tobytes(), dtype=np.uint8)
    kind, code = schema.TensorType, schema.BuiltinOperator
    tensors = [
        _tensor(schema, INPUT, kind.UINT8, (1, height, width, 3), 0),
        _tensor(schema, "float", kind.FLOAT32, (1, height, width, 3), 0),
        _tensor(schema, "kernel", kind.FLOAT32, constants[0].shape, 1),
        _tensor(schema, "bias", kind.FLOAT32, bias.shape, 2),
        _tensor(schema, OUTPUT, kind.FLOAT32, (1, *model.config.grid, model.config.channels), 0),
    ]
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = side
    convolve = _operator(schema, 1, [1, 2, 3], [4])
    convolve.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    convolve.builtinOptions = options
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = tensors, [0], [4]
    graph.operators = [_operator(schema, 0, [0], [1]), convolve]
    whole = schema.ModelT()
    whole.version = 3
    whole.operatorCodes = [_code(schema, each) for each in (code.CAST, code.CONV_2D)]
    whole.subgraphs, whole.buffers = [graph], buffers
    builder: Any = flatbuffers.Builder(4096)
    builder.Finish(whole.Pack(builder), b"TFL3")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(builder.Output()))


def _tensor(schema: Any, name: str, kind: int, shape: tuple[int, ...], buffer: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, list(shape), buffer
    return tensor


def _operator(schema: Any, code: int, inputs: list[int], outputs: list[int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    return operator


def _code(schema: Any, code: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = code
    made.version = 1
    return made
