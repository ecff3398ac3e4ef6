"""TFLite graphs built operator by operator, for devices: no TensorFlow.

They are written through the schema's own classes, which LiteRT brings along. Maps are
[1, height, width, features]; a sequence is a map of width 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class Graph:
    """Operators and constants as they are added; a tensor is known by its number.

    Raises ValueError where LiteRT is not installed.
    """

    def __init__(self) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError:
            raise ValueError("TFLite models need pip install 'offboard[device-tflite]'") from None
        self._schema: Any = schema
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._buffers: list[Any] = [schema.BufferT()]

    def source(self, name: str, shape: Shape, kind: type) -> int:
        """The graph's input, uint8 or float32."""
        types = self._schema.TensorType
        return self._tensor(name, types.UINT8 if kind is np.uint8 else types.FLOAT32, shape)

    def constant(self, name: str, values: npt.NDArray[Any]) -> int:
        """float32 (kept as float16 if that is exact and it is a matrix at least) or int32."""
        types = self._schema.TensorType
        if values.dtype.kind == "i":
            return self._held(name, types.INT32, values.astype("<i4"))
        half = values.astype(np.float16)
        if values.ndim < 2 or not np.array_equal(half.astype(np.float32), values):
            return self._held(name, types.FLOAT32, values.astype("<f4"))
        held = self._held(f"{name}.half", types.FLOAT16, half.astype("<f2"))
        return self._add("DEQUANTIZE", [held], name, values.shape)

    def cast(self, x: int, name: str) -> int:
        """uint8 as float32."""
        return self._add("CAST", [x], name, self._shape(x))

    def add(self, x: int, y: int, name: str) -> int:
        """The sum of two tensors, or of a tensor and a constant of its features."""
        return self._add("ADD", [x, y], name, self._shape(x), self._schema.AddOptionsT())

    def relu(self, x: int, name: str) -> int:
        """Zero where it is negative."""
        return self._add("RELU", [x], name, self._shape(x))

    def pool(self, x: int, side: int, name: str) -> int:
        """The mean of every `side` x `side` places."""
        options = self._schema.Pool2DOptionsT()
        options.padding = self._schema.Padding.VALID
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = side
        b, h, w, c = self._shape(x)
        return self._add("AVERAGE_POOL_2D", [x], name, (b, h // side, w // side, c), options)

    def conv(
        self, x: int, name: str, weight: F32, bias: F32, stride: Shape, padding: int = 0
    ) -> int:
        """A convolution by `weight` [o, i, h, w]; zeros around the map as PyTorch has them.

        There are none along a side on which the kernel is 1, as across a sequence.
        """
        b, h, w, c = self._shape(x)
        if padding:
            tall, wide = (padding if side > 1 else 0 for side in weight.shape[2:])
            pads = np.array([[0, 0], [tall, tall], [wide, wide], [0, 0]])
            around = self.constant(f"{name}.pad", pads)
            h, w = h + 2 * tall, w + 2 * wide
            x = self._add("PAD", [x, around], f"{name}.padded", (b, h, w, c))
        kernel = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        options = self._schema.Conv2DOptionsT()
        options.padding = self._schema.Padding.VALID
        options.strideH, options.strideW = stride
        names = [self.constant(f"{name}.weight", kernel), self.constant(f"{name}.b", bias)]
        o, kh, kw, _ = kernel.shape
        shape = (b, (h - kh) // stride[0] + 1, (w - kw) // stride[1] + 1, o)
        return self._add("CONV_2D", [x, *names], name, shape, options)

    def reshape(self, x: int, name: str, shape: Shape) -> int:
        """`x` in another shape."""
        wanted = self.constant(f"{name}.shape", np.array(shape))
        return self._add("RESHAPE", [x, wanted], name, shape)

    def save(self, path: Path, source: int, target: int) -> None:
        """Write the graph from `source` to `target`."""
        import flatbuffers

        schema = self._schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [source], [target]
        whole = schema.ModelT()
        whole.version = 3
        whole.operatorCodes = [self._code(code) for code in self._codes]
        whole.subgraphs, whole.buffers = [graph], self._buffers
        builder: Any = flatbuffers.Builder(4096)
        builder.Finish(whole.Pack(builder), b"TFL3")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(builder.Output()))

    def _held(self, name: str, kind: int, values: npt.NDArray[Any]) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), dtype=np.uint8)
        self._buffers.append(buffer)
        return self._tensor(name, kind, values.shape, len(self._buffers) - 1)

    def _tensor(self, name: str, kind: int, shape: Shape, buffer: int = 0) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, list(shape), buffer
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _shape(self, x: int) -> Shape:
        return tuple(self._tensors[x].shape)

    def _add(
        self, code: str, inputs: list[int], name: str, shape: Shape, options: Any = None
    ) -> int:
        target = self._tensor(name, self._schema.TensorType.FLOAT32, shape)
        number = getattr(self._schema.BuiltinOperator, code)
        if number not in self._codes:
            self._codes.append(number)
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.index(number)
        operator.inputs, operator.outputs = inputs, [target]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._operators.append(operator)
        return target

    def _code(self, code: int) -> Any:
        made = self._schema.OperatorCodeT()
        made.builtinCode = code
        made.deprecatedBuiltinCode = min(code, 127)
        made.version = _VERSIONS.get(code, 1)
        return made


_VERSIONS = {6: 2}
"""DEQUANTIZE takes float16 from its second version on, by number 6."""
