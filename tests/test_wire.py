"""Messages to packets and back: golden bytes, limits, and nothing copied."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import given

from common import codec
from common.errors import ProtocolError
from common.messages import Message, Ping, Query, Tensor
from common.parser import Parser
from common.wire import BEFORE_AUTH, CODECS, DEFAULT, PREFIX, SPECS, Limits, encode
from tests.packets import EXAMPLES, messages, packet

GOLDEN = Path(__file__).parent / "golden" / "packets.txt"


def parse(data: bytes, limits: Limits = DEFAULT) -> Message | None:
    """The first message of `data`, received in one piece if the parser takes it so."""
    parser = Parser(limits)
    at = 0
    while at < len(data):
        view = parser.get_buffer()
        n = min(len(view), len(data) - at)
        view[:n] = data[at : at + n]
        at += n
        message = parser.next(n)
        if message is not None:
            return message
    return None


def forge(kind: int, head: object, body: bytes = b"", tail: bytes = b"", **over: Any) -> bytes:
    """A packet with any head, and any prefix field overridden."""
    raw = (head if isinstance(head, bytes) else msgpack.packb(head)) + tail
    prefix = {
        "magic": b"OB", "version": 1, "kind": kind, "head_size": len(raw), "body_size": len(body),
        "id": 1, "ms_left": 0,
    } | over  # fmt: skip
    return PREFIX.pack(*prefix.values()) + raw + body


def query(tensors: object, body: bytes = b"", params: object = None) -> bytes:
    """A forged Query."""
    return forge(Query.KIND, ["raw", "whole", params or {}, 0, tensors], body)


def golden() -> dict[str, bytes]:
    lines = GOLDEN.read_text().splitlines()
    pairs = (line.split(": ") for line in lines if line and not line.startswith("#"))
    return {name: bytes.fromhex(data) for name, data in pairs}


def test_every_kind_has_an_example() -> None:
    assert {type(m) for m in EXAMPLES.values()} == set(get_args(Message))


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    assert packet(EXAMPLES[name]).hex() == golden()[name].hex()
    assert parse(golden()[name]) == EXAMPLES[name]


@given(messages)
def test_every_message_survives(message: Message) -> None:
    assert parse(packet(message)) == message


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_received_cannot_be_changed(name: str) -> None:
    message = parse(packet(EXAMPLES[name]))
    assert type(message) is type(EXAMPLES[name])
    assert repr(message).startswith(f"{type(message).__name__}(")
    held = [message, *getattr(message, "tensors", {}).values()]
    for each in held:
        for field in dataclasses.fields(each):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(each, field.name, None)


def test_prefix_is_twenty_bytes() -> None:
    assert PREFIX.size == 20
    data = packet(Ping(id=0x01020304, ms_left=5))
    assert data[:2] == b"OB"
    assert struct.unpack("!II", data[12:20]) == (0x01020304, 5)


def test_encode_gathers_without_copying() -> None:
    pixels = np.arange(100_000, dtype=np.uint8)
    buffers, size = encode(Query("raw", "whole", tensors={"x": codec.encode(pixels)}))
    assert size == sum(len(b) for b in buffers)
    assert np.shares_memory(np.frombuffer(buffers[1], np.uint8), pixels)


def test_encode_takes_any_contiguous_view() -> None:
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    empty = np.empty((0, 4), np.float32)
    tensors = {
        "grid": Tensor(grid.data, "float32", grid.shape),
        "empty": Tensor(empty.data, "float32", empty.shape),
        "one": Tensor(np.array(7.0).data, "float64", ()),
    }
    got = parse(packet(Query("raw", "whole", tensors=tensors)))
    assert isinstance(got, Query)
    assert np.array_equal(codec.decode(got.tensors["grid"]), grid)
    assert codec.decode(got.tensors["empty"]).shape == (0, 4)


def test_encode_refuses_what_cannot_travel() -> None:
    slanted = np.zeros((4, 4), np.uint8).T[:, ::2]
    with pytest.raises(ValueError, match="cannot be sent"):
        encode(Query("raw", "whole", tensors={"x": Tensor(slanted.data, "uint8", slanted.shape)}))
    with pytest.raises(ValueError, match="cannot be sent"):
        encode(Query("raw", "whole", {"x": object()}))  # type: ignore[dict-item]


def test_codecs_are_those_of_codec() -> None:
    assert set(codec.CODECS) == CODECS


def test_tensors_are_views_over_one_buffer() -> None:
    parts = {n: Tensor(bytes([i]) * 5000, "uint8", (5000,)) for i, n in enumerate("abc")}
    got = parse(packet(Query("raw", "whole", tensors=parts)))
    assert isinstance(got, Query)
    arrays = [np.frombuffer(t.data, np.uint8) for t in got.tensors.values()]
    assert all(a.flags.writeable for a in arrays)  # torch warns of others
    first = arrays[0].__array_interface__["data"][0]
    assert [a.__array_interface__["data"][0] - first for a in arrays] == [0, 5000, 10000]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (forge(7, [], magic=b"HT"), "not an Offboard packet"),
        (forge(7, [], version=9), "version 9"),
        (forge(99, []), "no message has kind 99"),
        (forge(7, [], head_size=1 << 20), "head of 1048576 bytes, 65536 allowed"),
        (forge(7, [], body_size=1 << 31), "body of 2147483648 bytes"),
        (forge(4, b""), "too short"),
        (forge(7, b"\xc1"), "not msgpack"),
        (forge(7, b"\x91"), "not msgpack"),
        (forge(7, b"\x91" * 2000 + b"\xc0"), "not msgpack"),
        (forge(7, b"\xdd\xff\xff\xff\xff"), "not msgpack"),
        (forge(7, {}), "not a list of 0 fields"),
        (forge(7, [1]), "not a list of 0 fields"),
        (forge(7, [], b"x"), "body of 1 bytes, but its tensors come to 0"),
        (forge(9, ["done", 7]), "Bye.reason: not a string"),
        (forge(9, ["done", "x" * 1025]), "Bye.reason: not a string of at most 1024"),
        (forge(6, [msgpack.ExtType(4, b"x")]), "not a list of 0 fields"),
        (forge(10, ["p", -1]), "Fetch.offset: not a natural number"),
        (forge(10, ["p", True]), "Fetch.offset: not a natural number"),
        (forge(1, [[1, "2"], "a", [], 1, ""]), "Hello.accept: not a natural number"),
        (forge(1, [[1], "a", ["x"] * 1025, 1, ""]), "Hello.strategies: not a list of at most"),
        (forge(5, ["busy", "", 1]), "Refusal.retryable: not a bool"),
        (forge(4, ["edge", 1, None, {}], tail=b"\xcb" + bytes(8) + b"\xcb" + bytes(8)),
         "Result.wants: not a bytes"),
        (forge(4, ["edge", None, None, {}], tail=b"\xca" + bytes(17)), "float64"),
        (query({}, params={"a": {}}), "Query.params: holds neither"),
        (query({}, params={"a": [[1]]}), "Query.params: holds neither"),
        (query({}, params={1: 1}), "not msgpack"),
        (query({}, params={str(i): 0 for i in range(1025)}), "Query.params: not a map of at most"),
        (query([]), "tensors are not a map"),
        (query({str(i): ["uint8", [0], "raw", 0] for i in range(33)}), "33 tensors, 32 allowed"),
        (query({"": ["uint8", [0], "raw", 0]}), "name is not a short string"),
        (query({"x": ["uint8", [0], "raw"]}), "is not [dtype, shape, codec, size]"),
        (query({"x": ["object", [1], "raw", 1]}, b"x"), "dtype not allowed"),
        (query({"x": ["uint8", [1], "pickle", 1]}, b"x"), "codec not allowed"),
        (query({"x": ["uint8", [1] * 9, "raw", 1]}, b"x"), "few dimensions"),
        (query({"x": ["uint8", [-1, -1], "raw", 1]}, b"x"), "not a natural number"),
        (query({"x": ["uint8", [1.0], "raw", 1]}, b"x"), "not a natural number"),
        (query({"x": ["float64", [1 << 40], "lz4", 1]}, b"x"), "come to over 268435456 bytes"),
        (query({"x": ["uint8", [2], "raw", 1]}, b"x"), "size does not fit"),
        (query({"x": ["uint8", [1], "raw", 1]}, b"xy"), "body of 2 bytes"),
    ],
)  # fmt: skip
def test_violations_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(data)
    assert reason in caught.value.reason
    assert len(caught.value.reason) < 200


def test_before_auth_only_a_hello_fits() -> None:
    assert parse(packet(EXAMPLES["hello"]), BEFORE_AUTH) == EXAMPLES["hello"]
    with pytest.raises(ProtocolError, match="body of"):
        parse(packet(EXAMPLES["query"]), BEFORE_AUTH)
    long = dataclasses.replace(EXAMPLES["hello"], token="x" * 5000)  # type: ignore[call-arg]
    with pytest.raises(ProtocolError, match="head of"):
        parse(packet(long), BEFORE_AUTH)


def test_encoding_is_derived_from_the_fields() -> None:
    for spec in SPECS.values():
        names = {f.name for f in dataclasses.fields(spec.build)}
        travelling = {*spec.plain, *spec.floats} | ({"tensors"} if spec.tensors else set())
        assert names - travelling == ({"id", "ms_left"} if spec.addressed else set())


def test_what_is_optional_is_left_out_where_it_is_empty() -> None:
    bare, passed_on = packet(EXAMPLES["query bare"]), packet(EXAMPLES["query passed on"])
    assert msgpack.unpackb(bare[20:]) == ["raw", "whole", {}, 0, {}]
    assert msgpack.unpackb(passed_on[20:]) == ["raw", "whole", {}, 0, ["51c0ffee"], {}]
    for head in (["raw", "whole", {}, {}], ["raw", "whole", {}, 0, [], 1, {}]):
        with pytest.raises(ProtocolError, match="not a list of 6 fields"):
            parse(forge(Query.KIND, head))
    with pytest.raises(ProtocolError, match=r"Query\.via: "):
        parse(forge(Query.KIND, ["raw", "whole", {}, 0, [7], {}]))
