"""A .tflite model without TensorFlow: the stub's classes by brightness, written field by field.

Numbers are slots and enumerators of the public schema (tensorflow/lite/schema/schema.fbs).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.device_stub import SIDE

FLOAT32, INT32, UINT8 = 0, 2, 3
CAST, MEAN, SUB, ABS, NEG, SOFTMAX = 53, 40, 41, 101, 59, 25
REDUCER_OPTIONS, SOFTMAX_OPTIONS = 27, 9
OPERATORS = (CAST, MEAN, SUB, ABS, NEG, SOFTMAX)


def local_model() -> bytes:
    """ "frame" uint8 [1, 64, 64, 3] -> "probabilities" float32 [1, 4], as `device_stub`'s."""
    import flatbuffers

    b: Any = flatbuffers.Builder(4096)
    constants = [b"", _bytes([1, 2, 3], np.int32), _bytes([[32, 96, 160, 224]], np.float32)]
    buffers = _tables(b, [_buffer(b, data) for data in constants])
    tensors = _tables(
        b,
        [
            _tensor(b, "frame", UINT8, [1, SIDE, SIDE, 3], 0),
            _tensor(b, "pixels", FLOAT32, [1, SIDE, SIDE, 3], 0),
            _tensor(b, "axes", INT32, [3], 1),
            _tensor(b, "mean", FLOAT32, [1], 0),
            _tensor(b, "centres", FLOAT32, [1, 4], 2),
            _tensor(b, "difference", FLOAT32, [1, 4], 0),
            _tensor(b, "distance", FLOAT32, [1, 4], 0),
            _tensor(b, "nearness", FLOAT32, [1, 4], 0),
            _tensor(b, "probabilities", FLOAT32, [1, 4], 0),
        ],
    )
    drops_axes = _table(b, 1, lambda: b.PrependBoolSlot(0, False, True))
    beta = _table(b, 1, lambda: b.PrependFloat32Slot(0, 1.0, 0.0))
    operators = _tables(
        b,
        [
            _operator(b, CAST, [0], 1),
            _operator(b, MEAN, [1, 2], 3, REDUCER_OPTIONS, drops_axes),
            _operator(b, SUB, [3, 4], 5),
            _operator(b, ABS, [5], 6),
            _operator(b, NEG, [6], 7),
            _operator(b, SOFTMAX, [7], 8, SOFTMAX_OPTIONS, beta),
        ],
    )
    graph_in, graph_out = _integers(b, [0]), _integers(b, [8])

    def graph() -> None:
        for slot, offset in enumerate((tensors, graph_in, graph_out, operators)):
            b.PrependUOffsetTRelativeSlot(slot, offset, 0)

    graphs = _tables(b, [_table(b, 4, graph)])
    codes = _tables(b, [_code(b, code) for code in OPERATORS])

    def model() -> None:
        b.PrependUint32Slot(0, 3, 0)
        for slot, offset in ((1, codes), (2, graphs), (4, buffers)):
            b.PrependUOffsetTRelativeSlot(slot, offset, 0)

    b.Finish(_table(b, 5, model), b"TFL3")
    return bytes(b.Output())


def _bytes(values: Any, dtype: Any) -> bytes:
    return np.array(values, dtype=dtype).tobytes()


def _table(b: Any, slots: int, fill: Any) -> int:
    b.StartObject(slots)
    fill()
    return int(b.EndObject())


def _tables(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _integers(b: Any, values: list[int]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependInt32(value)
    return int(b.EndVector())


def _buffer(b: Any, data: bytes) -> int:
    b.StartVector(1, len(data), 16)
    b.head -= len(data)
    b.Bytes[b.head : b.head + len(data)] = data
    vector = b.EndVector()
    return _table(b, 1, lambda: b.PrependUOffsetTRelativeSlot(0, vector, 0))


def _tensor(b: Any, name: str, kind: int, shape: list[int], buffer: int) -> int:
    sizes, text = _integers(b, shape), b.CreateString(name)

    def fill() -> None:
        b.PrependUOffsetTRelativeSlot(0, sizes, 0)
        b.PrependInt8Slot(1, kind, 0)
        b.PrependUint32Slot(2, buffer, 0)
        b.PrependUOffsetTRelativeSlot(3, text, 0)

    return _table(b, 4, fill)


def _code(b: Any, code: int) -> int:
    def fill() -> None:
        b.PrependInt8Slot(0, code, 0)
        b.PrependInt32Slot(2, 1, 0)
        b.PrependInt32Slot(3, code, 0)

    return _table(b, 4, fill)


def _operator(
    b: Any, code: int, inputs: list[int], output: int, kind: int = 0, options: int = 0
) -> int:
    given, made = _integers(b, inputs), _integers(b, [output])

    def fill() -> None:
        b.PrependUint32Slot(0, OPERATORS.index(code), 0)
        b.PrependUOffsetTRelativeSlot(1, given, 0)
        b.PrependUOffsetTRelativeSlot(2, made, 0)
        b.PrependUint8Slot(3, kind, 0)
        b.PrependUOffsetTRelativeSlot(4, options, 0)

    return _table(b, 5, fill)
