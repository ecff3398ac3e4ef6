"""Packets: bytes in, messages out, and back. Limits first. No I/O.

A packet is a fixed prefix (magic, version, kind, length of head, length of body, id, milliseconds
left), a msgpack head that holds the message's other fields (see `Spec`), and the tensors' data one
behind the other. The head describes each tensor as name -> [dtype, shape, codec, size].

Everything a length could make us allocate is checked against `Limits` first. Whatever breaks a
rule is a ProtocolError whose reason the peer may read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
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

CODECS: Final = frozenset({"raw", "lz4", "zstd", "lzw", "jpeg", "webp"})
"""The codecs that may be named: the keys of `codec.CODECS`, which this file does not load."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may send. Lengths in bytes unless said otherwise.

    `decoded`: what the tensors of a packet may come to, decoded. `text`: characters of a string.
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


_FLOAT: Final = 0xCB
"""msgpack's tag of a float64."""


class Spec:
    """How one kind of message is coded, derived from its dataclass.

    head: a msgpack list of the plain fields in order, then the tensors' description; behind the
    list each float field as a msgpack float64. Floats are what changes from packet to packet, so
    the list's bytes repeat and can be looked up. `id` and `ms_left` travel in the prefix. The last
    plain field may be declared optional: it is left out where it is empty.
    """

    __slots__ = (
        "addressed", "build", "checks", "floats", "get", "get_floats", "kind", "name", "optional",
        "plain", "tags", "tail", "tensors", "twin",
    )  # fmt: skip

    def __init__(self, build: type[Any]) -> None:
        hints = get_type_hints(build)
        every = [f.name for f in fields(build)]
        self.build = build
        self.kind: int = build.KIND
        self.name = build.__name__
        self.addressed = "id" in every
        self.tensors = "tensors" in every
        self.floats = tuple(n for n in every if hints[n] is float)
        prefixed = ("id", "ms_left") if self.addressed else ()
        self.plain = tuple(n for n in every if n not in ("tensors", *prefixed, *self.floats))
        optional = [f.name for f in fields(build) if f.metadata.get("optional")]
        self.optional = bool(optional)
        """Whether the last plain field may be left out."""
        if self.optional and optional != [*self.plain[-1:]]:
            raise TypeError(f"of {self.name} only the last plain field can be optional")
        self.checks: tuple[Check, ...] = tuple(check_of(hints[n]) for n in self.plain)
        self.get = _getter(self.plain)
        self.get_floats = _getter(self.floats)
        self.tail = Struct("!" + "Bd" * len(self.floats))
        self.tags = (_FLOAT,) * len(self.floats)
        self.twin = _twin(
            build, (*self.plain, *(["tensors"] if self.tensors else []), *self.floats, *prefixed)
        )
        """Takes the fields in the order in which they are received."""


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if not names:
        return lambda message: ()
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda message: (get(message),)


def _twin(build: type[Any], order: tuple[str, ...]) -> type[Any]:
    """`build` before it is frozen: takes the fields in `order`, and is then declared a `build`.

    A frozen dataclass sets each field through a call, which takes four times as long.
    """
    return make_dataclass(build.__name__, order, slots=True, eq=False, repr=False)


SPECS: Final = {spec.kind: spec for spec in map(Spec, get_args(Message))}
_BY_TYPE: Final = {spec.build: spec for spec in SPECS.values()}
_TENSOR: Final = _twin(Tensor, ("data", "dtype", "shape", "codec"))
_pack = msgpack.Packer(autoreset=True).pack


def encode(
    message: Message, id: int | None = None, ms_left: int | None = None, version: int = 1
) -> tuple[list[Buffer], int]:
    """The packet of `message` as buffers to gather, and its size in bytes.

    `id` and `ms_left` replace the message's own. The tensors' data are not copied: they must not
    change before the buffers are written. Raises ValueError for data that are not contiguous and
    for fields msgpack cannot hold.
    """
    spec = _BY_TYPE[type(message)]
    buffers: list[Buffer] = [b""]
    body = 0
    try:
        plain = spec.get(message)
        if spec.optional and not plain[-1]:
            plain = plain[:-1]
        if spec.tensors:
            described = {}
            for name, tensor in message.tensors.items():  # type: ignore[union-attr]
                data = tensor.data
                if type(data) is memoryview and (data.itemsize != 1 or data.ndim != 1):
                    data = data.cast("B") if data.nbytes else b""
                size = len(data)
                described[name] = (tensor.dtype, tensor.shape, tensor.codec, size)
                if size:
                    buffers.append(data)
                    body += size
            plain += (described,)
        head = _pack(plain)
        if spec.floats:
            for value in spec.get_floats(message):
                head += _pack(float(value))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{spec.name} cannot be sent: {error}") from None
    if spec.addressed:
        if id is None:
            id = message.id  # type: ignore[union-attr]
        if ms_left is None:
            ms_left = message.ms_left  # type: ignore[union-attr]
    else:
        id, ms_left = 0, NO_DEADLINE
    size = len(head)
    buffers[0] = PREFIX.pack(MAGIC, version, spec.kind, size, body, id, ms_left) + head
    return buffers, PREFIX.size + size + body


Described = tuple[str, str, tuple[int, ...], str, int]
"""One tensor of a head: name, dtype, shape, codec, size."""


class Head:
    """A decoded head without its floats. It may serve many packets unless `fresh`."""

    __slots__ = ("fresh", "plain", "size", "spec", "tensors")

    def __init__(self, spec: Spec, plain: tuple[Any, ...], tensors: tuple[Described, ...]) -> None:
        self.spec = spec
        self.plain = plain
        self.tensors = tensors
        self.size = sum(t[4] for t in tensors)
        """Bytes of body it asks for."""
        self.fresh = any(type(v) is dict and v for v in plain)
        """Whether it holds what a receiver could change, and so must not be shared."""

    def message(
        self, floats: tuple[float, ...], id: int, ms_left: int, body: memoryview | bytes
    ) -> Message:
        """The message of one packet, its tensors as views over `body`."""
        spec = self.spec
        if not spec.tensors:
            made = spec.twin(*self.plain, id, ms_left) if spec.addressed else spec.twin(*self.plain)
        else:
            tensors = {}
            at = 0
            for name, dtype, shape, codec, size in self.tensors:
                data = body if size == self.size else body[at : at + size]
                tensors[name] = tensor = _TENSOR(data, dtype, shape, codec)
                tensor.__class__ = Tensor
                at += size
            made = spec.twin(*self.plain, tensors, *floats, id, ms_left)
        made.__class__ = spec.build
        return made  # type: ignore[no-any-return]


def decode_floats(spec: Spec, view: memoryview, at: int) -> tuple[float, ...]:
    """The floats behind the list of a head. Raises ProtocolError."""
    found = spec.tail.unpack_from(view, at)
    if found[::2] != spec.tags:
        raise ProtocolError(f"{spec.name} does not end in float64s")
    return found[1::2]


def decode_head(spec: Spec, head: bytes, limits: Limits) -> Head:
    """Decode and check the list of a head. Raises ProtocolError."""
    try:
        # What msgpack allocates is bounded by the bytes it is given.
        values = msgpack.unpackb(head, use_list=False)
    except Exception as error:  # msgpack raises a dozen kinds, RecursionError among them
        reason = (str(error) or type(error).__name__)[:80]
        raise ProtocolError(f"head of {spec.name} is not msgpack: {reason}") from None
    wanted = len(spec.plain) + spec.tensors
    if spec.optional and type(values) is tuple and len(values) == wanted - 1:
        at = len(spec.plain) - 1
        values = (*values[:at], (), *values[at:])
    if type(values) is not tuple or len(values) != wanted:
        raise ProtocolError(f"head of {spec.name} is not a list of {wanted} fields")
    plain = []
    for name, check, value in zip(spec.plain, spec.checks, values, strict=False):
        try:
            plain.append(check(value, limits.text, limits.items))
        except ValueError as error:
            raise ProtocolError(f"{spec.name}.{name}: {error}") from None
    return Head(spec, tuple(plain), _described(values[-1], limits) if spec.tensors else ())


def _described(value: Any, limits: Limits) -> tuple[Described, ...]:
    """Check the tensors' description against `limits`."""
    if type(value) is not dict:
        raise ProtocolError("tensors are not a map")
    if len(value) > limits.tensors:
        raise ProtocolError(f"{len(value)} tensors, {limits.tensors} allowed")
    found = []
    decoded = 0
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
        decoded += length
        if decoded > limits.decoded:
            raise ProtocolError(f"tensors come to over {limits.decoded} bytes once decoded")
        if codec == "raw" and length != size:
            raise ProtocolError(f"tensor {name[:32]!r}: size does not fit shape and dtype")
        found.append((name, dtype, shape, codec, size))
    return tuple(found)
