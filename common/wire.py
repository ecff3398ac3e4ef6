"""Packets: bytes in, messages out, and back. Limits first. No I/O.

A packet is a fixed prefix (magic, version, kind, length of head, length of body, id, milliseconds
left), a msgpack head that holds the message's other fields in order, and the tensors' data one
behind the other. The head describes each tensor as name -> [dtype, shape, codec, size].

Everything a length could make us allocate is checked against `Limits` first. Whatever breaks a
rule is a ProtocolError whose reason the peer may read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from struct import Struct
from typing import Any, Final, get_args, get_type_hints

import msgpack  # type: ignore[import-untyped]

from common.errors import ProtocolError
from common.heads import Check, check_of
from common.messages import NO_DEADLINE, Message, Tensor

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"OB"
VERSIONS: Final = (1,)
"""Protocol versions spoken here, best last."""

PREFIX: Final = Struct("!2sBBIIII")
"""magic, version, kind, head length, body length, id, milliseconds left."""

DTYPES: Final = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "uint32": 4,
    "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
"""The dtypes that may travel (numpy names, little-endian) and their size in bytes."""

CODECS: Final = frozenset({"raw", "lz4", "zstd", "zlib", "huffman", "packed", "jpeg", "mosaic"})
"""The codecs that may be named; `codec` knows what they mean."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may send. Lengths in bytes unless said otherwise.

    `decoded`: what one tensor may come to once decoded. `text`: characters of one string.
    `items`: entries of one list or map in the head. Nesting is bounded by the messages' types.
    """

    head: int = 64 << 10
    body: int = 64 << 20
    decoded: int = 256 << 20
    tensors: int = 32
    dims: int = 8
    text: int = 1024
    items: int = 1024

    @property
    def packet(self) -> int:
        """The largest packet."""
        return PREFIX.size + self.head + self.body


DEFAULT: Final = Limits()
BEFORE_AUTH: Final = Limits(head=4096, body=0, decoded=0, tensors=0, dims=0, items=64)
"""Enough for a Hello."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How one kind of message is coded, derived from its dataclass."""

    build: type[Any]
    names: tuple[str, ...]
    checks: tuple[Check, ...]
    get: Callable[[Any], Any]
    tensors: int | None
    addressed: bool

    @classmethod
    def of(cls, build: type[Any]) -> Spec:
        """Derive the coding from the fields of `build`."""
        hints = get_type_hints(build)
        every = [f.name for f in fields(build)]
        names = tuple(n for n in every if n not in ("id", "ms_left"))
        getter = attrgetter(*names) if names else None
        return cls(
            build=build,
            names=names,
            checks=tuple(check_of(hints[n]) for n in names),
            get=(lambda m: ())
            if getter is None
            else getter
            if len(names) > 1
            else lambda m: (getter(m),),
            tensors=names.index("tensors") if "tensors" in names else None,
            addressed="id" in every,
        )


SPECS: Final = {kind.KIND: Spec.of(kind) for kind in get_args(Message)}
_BY_TYPE: Final = {spec.build: (number, spec) for number, spec in SPECS.items()}
_pack = msgpack.Packer(autoreset=True).pack


def encode(
    message: Message, *, id: int | None = None, ms_left: int | None = None, version: int = 1
) -> tuple[list[Buffer], int]:
    """The packet of `message` as buffers to gather, and its size in bytes.

    `id` and `ms_left` replace the message's own. The tensors' data are not copied: they must not
    change before the buffers are written. Raises ValueError if a tensor's data are not contiguous.
    """
    number, spec = _BY_TYPE[type(message)]
    values = list(spec.get(message))
    buffers: list[Buffer] = [b""]
    body = 0
    if spec.tensors is not None:
        described = {}
        for name, tensor in values[spec.tensors].items():
            data = tensor.data
            if type(data) is memoryview and (data.itemsize != 1 or data.ndim != 1):
                data = data.cast("B") if data.nbytes else b""
            size = len(data)
            described[name] = (tensor.dtype, tensor.shape, tensor.codec, size)
            if size:
                buffers.append(data)
                body += size
        values[spec.tensors] = described
    if spec.addressed:
        id = message.id if id is None else id  # type: ignore[union-attr]
        ms_left = message.ms_left if ms_left is None else ms_left  # type: ignore[union-attr]
    else:
        id, ms_left = 0, NO_DEADLINE
    head = _pack(values)
    buffers[0] = PREFIX.pack(MAGIC, version, number, len(head), body, id, ms_left) + head
    return buffers, len(buffers[0]) + body


Described = tuple[str, str, tuple[int, ...], str, int]
"""One tensor of a head: name, dtype, shape, codec, size."""


@dataclass(frozen=True, slots=True)
class Head:
    """A decoded head; may serve many packets unless `fresh`: it then holds mutable values."""

    spec: Spec
    values: dict[str, Any]
    tensors: tuple[Described, ...]
    size: int
    fresh: bool

    def message(self, id: int, ms_left: int, body: memoryview | None) -> Message:
        """The message of one packet, its tensors as views over `body`."""
        values = self.values
        if self.spec.tensors is not None:
            at = 0
            tensors = {}
            for name, dtype, shape, codec, size in self.tensors:
                assert body is not None or not size
                data = body[at : at + size] if body is not None else b""
                tensors[name] = Tensor(data, dtype, shape, codec)
                at += size
            values = {**values, "tensors": tensors}
        if self.spec.addressed:
            return self.spec.build(**values, id=id, ms_left=ms_left)  # type: ignore[no-any-return]
        return self.spec.build(**values)  # type: ignore[no-any-return]


def decode_head(kind: int, head: Buffer, limits: Limits) -> Head:
    """Decode and check a head. Raises ProtocolError."""
    spec = SPECS[kind]
    try:
        values = msgpack.unpackb(
            head,
            use_list=False,
            max_str_len=limits.head,
            max_bin_len=limits.head,
            max_array_len=limits.items,
            max_map_len=limits.items,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen kinds, RecursionError among them
        raise ProtocolError(f"head is not msgpack within the limits ({_brief(error)})") from None
    name = spec.build.__name__
    if type(values) is not tuple or len(values) != len(spec.names):
        raise ProtocolError(f"head of {name} is not a list of {len(spec.names)} fields")
    checked: dict[str, Any] = {}
    tensors: tuple[Described, ...] = ()
    for i, (field, check, value) in enumerate(zip(spec.names, spec.checks, values, strict=True)):
        if i == spec.tensors:
            tensors = _described(value, limits)
            continue
        try:
            checked[field] = check(value, limits.text)
        except ValueError as error:
            raise ProtocolError(f"{name}.{field}: {error}") from None
    fresh = any(type(v) is dict and v for v in checked.values())
    return Head(spec, checked, tensors, sum(t[4] for t in tensors), fresh)


def _described(value: Any, limits: Limits) -> tuple[Described, ...]:
    """Check the tensors' description against `limits`."""
    if type(value) is not dict:
        raise ProtocolError("tensors are not a map")
    if len(value) > limits.tensors:
        raise ProtocolError(f"{len(value)} tensors, {limits.tensors} allowed")
    found = []
    for name, entry in value.items():
        if type(name) is not str or not 0 < len(name) <= limits.text:
            raise ProtocolError("a tensor's name is not a short string")
        if type(entry) is not tuple or len(entry) != 4:
            raise ProtocolError(f"tensor {name[:32]!r} is not [dtype, shape, codec, size]")
        dtype, shape, codec, size = entry
        if type(dtype) is not str or dtype not in DTYPES:
            raise ProtocolError(f"tensor {name[:32]!r}: dtype not allowed")
        if type(codec) is not str or codec not in CODECS:
            raise ProtocolError(f"tensor {name[:32]!r}: codec not allowed")
        if type(shape) is not tuple or len(shape) > limits.dims:
            raise ProtocolError(f"tensor {name[:32]!r}: shape is not a list of few dimensions")
        if any(type(n) is not int or n < 0 for n in shape) or type(size) is not int or size < 0:
            raise ProtocolError(f"tensor {name[:32]!r}: a length is not a natural number")
        length = math.prod(shape) * DTYPES[dtype]
        if length > limits.decoded:
            raise ProtocolError(f"tensor {name[:32]!r} is over {limits.decoded} bytes")
        if codec == "raw" and length != size:
            raise ProtocolError(f"tensor {name[:32]!r}: size does not fit shape and dtype")
        found.append((name, dtype, shape, codec, size))
    return tuple(found)


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:80]
