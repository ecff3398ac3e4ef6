"""One example of every kind of message, and Hypothesis strategies that make any."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np
from hypothesis import strategies as st

from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Ping,
    Pong,
    Query,
    Refusal,
    Result,
    Tensor,
    Welcome,
)
from common.wire import DTYPES, encode

EXAMPLES: dict[str, Message] = {
    "hello": Hello((1, 2), "camera 7", ("amot", "raw"), 1 << 20, "s3cret"),
    "welcome": Welcome(1, "offboard", "signs", "ab12", ("amot", "raw"), 64 << 20, 8),
    "query": Query(
        "amot",
        "sample",
        {"seed": 7, "rate": 0.25, "name": "é", "mask": b"\x01\x80", "none": None, "list": [1, "a"]},
        {
            "patches": Tensor(bytes(range(12)), "uint8", (2, 2, 3)),
            "scale": Tensor(b"\x00\x00\x80\x3f", "float32", ()),
        },
        memory=41,
        id=42,
        ms_left=250,
    ),
    "query bare": Query("raw", "whole", id=1),
    "query passed on": Query("raw", "whole", id=1, ms_left=90, via=("51c0ffee",)),
    "result": Result(
        "edge",
        {"probabilities": Tensor(b"\x00\x00\x00\x3f\x00\x00\x00\x3f", "float32", (2,))},
        wants=b"\xf0",
        server_ms=12.5,
        queue_ms=0.25,
        degraded="one round only",
        id=42,
    ),
    "refusal": Refusal("busy", "queue full", True, id=42),
    "cancel": Cancel(id=42),
    "ping": Ping(id=1),
    "pong": Pong(id=1),
    "bye": Bye("drain", "restarting"),
    "fetch": Fetch("device/model.onnx", 65536, id=43),
    "chunk": Chunk(4, 6, "00ff", {"data": Tensor(b"ab", "uint8", (2,))}, id=43),
}


def packet(message: Message) -> bytes:
    """The whole packet of `message`."""
    buffers, size = encode(message)
    data = b"".join(buffers)
    assert len(data) == size
    return data


_text = st.text(max_size=20)
_scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), _text,
    st.binary(max_size=20),
)  # fmt: skip
_natural = st.integers(0, 2**32 - 1)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A raw tensor of up to a few kilobytes, or a coded one of any bytes."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 8), max_size=4)))
    if draw(st.booleans()):
        return Tensor(draw(st.binary(max_size=50)), dtype, shape, draw(st.sampled_from(["lz4"])))
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype]
    fill = draw(st.integers(0, 255))
    return Tensor(bytes([fill]) * size, dtype, shape)


def _of(annotation: Any, name: str) -> st.SearchStrategy[Any]:
    if name == "tensors":
        return st.dictionaries(st.text(min_size=1, max_size=9), tensors(), max_size=4)
    if name == "params":
        return st.dictionaries(_text, st.one_of(_scalar, st.lists(_scalar, max_size=4)), max_size=4)
    known: dict[Any, st.SearchStrategy[Any]] = {
        str: _text,
        int: _natural,
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        str | None: st.none() | _text,
        bytes | None: st.none() | st.binary(max_size=30),
        tuple[int, ...]: st.lists(_natural, max_size=4).map(tuple),
        tuple[str, ...]: st.lists(_text, max_size=4).map(tuple),
    }
    return known[annotation]


def _message(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{f.name: _of(hints[f.name], f.name) for f in fields(kind)})


messages: st.SearchStrategy[Message] = st.one_of([_message(kind) for kind in get_args(Message)])
"""Any message at all."""
