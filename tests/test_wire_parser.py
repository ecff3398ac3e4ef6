"""Any chunking gives the same packets; any bytes give packets or ProtocolError; views stay true."""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.messages import Message, Ping, Query, Tensor
from common.parser import CACHED_HEADS, SLACK, SMALL, WINDOW, Parser
from common.wire import BEFORE_AUTH, DEFAULT, PREFIX, Limits, encode
from tests.packets import EXAMPLES, messages, packet


def feed(parser: Parser, data: bytes, chunks: list[int] | None = None) -> list[Message]:
    """Every message of `data`, which arrives in pieces of `chunks` bytes (then all that fits)."""
    found: list[Message] = []
    view = memoryview(data)
    sizes = iter(chunks or [])
    while view:
        buffer = parser.get_buffer(-1)
        assert len(buffer) > 0
        n = min(len(buffer), len(view), next(sizes, len(view)))
        buffer[:n] = view[:n]
        view = view[n:]
        message = parser.next(n)
        while message is not None:
            found.append(message)
            message = parser.next()
    return found


def big(fill: int, size: int) -> Query:
    """A query with one tensor of `size` bytes `fill`."""
    return Query("raw", "whole", tensors={"x": Tensor(bytes([fill]) * size, "uint8", (size,))})


def values(message: Message) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    assert isinstance(message, Query)
    return np.frombuffer(message.tensors["x"].data, np.uint8)


@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 300), max_size=60))
def test_any_chunking_gives_the_same(said: list[Message], chunks: list[int]) -> None:
    parser = Parser(DEFAULT)
    assert feed(parser, b"".join(map(packet, said)), chunks) == said
    assert not parser.partial


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, SMALL, SMALL + 1, 50_000, WINDOW[1], WINDOW[1] + 1, 3_000_000]),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_any_chunking_of_large_packets(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    said = [big(rng.randrange(256), size) for size in sizes]
    chunks = [rng.choice([1, 20, 21, 1000, 65536, 10**6]) for _ in range(50)]
    parser = Parser(DEFAULT)
    assert feed(parser, b"".join(map(packet, said)), chunks) == said
    assert not parser.partial


@pytest.mark.parametrize("name", EXAMPLES)
def test_whole_byte_by_byte_and_with_trailing_data(name: str) -> None:
    message, data = EXAMPLES[name], packet(EXAMPLES[name])
    assert feed(Parser(DEFAULT), data) == [message]
    assert feed(Parser(DEFAULT), data, [1] * len(data)) == [message]
    trailing = Parser(DEFAULT)
    assert feed(trailing, data + data[:7]) == [message]
    assert trailing.partial
    assert trailing.left == 7
    assert feed(trailing, data[7:]) == [message]


def check_reason(error: ProtocolError) -> None:
    assert 0 < len(error.reason) < 200


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_messages_or_protocol_error(data: bytes) -> None:
    try:
        feed(Parser(DEFAULT), data)
    except ProtocolError as error:
        check_reason(error)


@settings(max_examples=300)
@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_damaged_packets_give_messages_or_protocol_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(packet(EXAMPLES[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        feed(Parser(DEFAULT), bytes(damaged) + packet(Ping(id=1)))
    except ProtocolError as error:
        check_reason(error)


def test_a_claim_allocates_nothing_before_it_is_checked() -> None:
    claims = [
        PREFIX.pack(b"OB", 1, Query.KIND, 2**32 - 1, 0, 1, 0),
        PREFIX.pack(b"OB", 1, Query.KIND, 10, 2**32 - 1, 1, 0),
        packet(EXAMPLES["query bare"])[: PREFIX.size] + b"\xdd\xff\xff\xff\xff" + bytes(9),
        packet(EXAMPLES["query bare"])[: PREFIX.size] + b"\xc6\xff\xff\xff\xff" + bytes(9),
    ]
    for claim in claims:
        parser = Parser(DEFAULT)
        tracemalloc.start()
        with pytest.raises(ProtocolError):
            feed(parser, claim)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


def test_an_honest_claim_allocates_its_body_once() -> None:
    size = 3 << 20
    data = packet(big(7, size))
    parser = Parser(DEFAULT)
    tracemalloc.start()
    found = feed(parser, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert peak < size + 100_000


def test_limits_rise_between_two_packets() -> None:
    parser = Parser(BEFORE_AUTH)
    data = packet(EXAMPLES["hello"]) + packet(big(1, 100))
    view = parser.get_buffer(-1)
    view[: len(data)] = data
    assert parser.next(len(data)) == EXAMPLES["hello"]
    parser.limits = DEFAULT
    assert parser.next() == big(1, 100)


def test_one_version_once_agreed() -> None:
    parser = Parser(DEFAULT)
    parser.version = 2
    with pytest.raises(ProtocolError, match="version 1"):
        feed(parser, packet(Ping(id=1)))


@pytest.mark.parametrize("size", [100, SMALL, SMALL + 1, 20_000, 200_000, 3_000_000])
def test_a_view_is_never_written_again(size: int) -> None:
    parser = Parser(DEFAULT)
    held = []
    for fill in range(40):
        # Pieces that end anywhere, small packets in between: every way to move a window.
        data = packet(big(fill, size)) + packet(Ping(id=1)) + packet(big(fill + 100, 3))
        held += [m for m in feed(parser, data, [31, 5000, 70_000]) if isinstance(m, Query)]
    for fill in range(40):
        assert (values(held[2 * fill]) == fill).all()
        assert (values(held[2 * fill + 1]) == fill + 100).all()


def test_torch_holds_the_view_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    parser = Parser(DEFAULT)
    (message,) = feed(parser, packet(big(9, 50_000)))
    array = values(message)
    tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    del message, array
    feed(parser, packet(big(1, 50_000)) * 20)
    assert bool((tensor == 9).all())


def test_memory_goes_with_the_last_view() -> None:
    parser = Parser(DEFAULT)
    (message,) = feed(parser, packet(big(9, 3_000_000)))
    assert isinstance(message, Query)
    data = message.tensors["x"].data
    assert isinstance(data, memoryview)
    owner = weakref.ref(data.obj)
    array = values(message)
    del message, data
    gc.collect()
    assert owner() is not None
    del array
    gc.collect()
    assert owner() is None


def test_an_idle_connection_holds_little() -> None:
    parser = Parser(DEFAULT)
    feed(parser, packet(big(1, 200_000)) * 3)
    feed(parser, packet(Ping(id=1)) * 2)
    assert len(parser.get_buffer(-1)) <= WINDOW[0] + SLACK


def test_heads_that_never_repeat_do_not_pile_up() -> None:
    parser = Parser(DEFAULT)
    for n in range(10 * CACHED_HEADS):
        feed(parser, packet(Query("raw", f"step{n}", id=1)))
    assert len(parser._heads[Query.KIND]) <= CACHED_HEADS


def test_cached_heads_are_not_shared_where_they_can_be_changed() -> None:
    parser = Parser(DEFAULT)
    query = Query("raw", "whole", {"list": [1, 2]}, id=1)
    for _ in range(3):
        (message,) = feed(parser, packet(query))
        assert message == query
        assert isinstance(message, Query)
        assert isinstance(message.params, dict)
        message.params["list"] = 7


def test_limits_have_a_largest_packet() -> None:
    limits = Limits(head=100, body=1000)
    assert limits.packet == PREFIX.size + 1100
    assert encode(Ping(id=1))[1] < BEFORE_AUTH.packet
