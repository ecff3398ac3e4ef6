"""LZW: what went in comes out, and whatever else comes in takes no more memory than was agreed."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import lzw


def packed(*codes_and_widths: tuple[int, int]) -> bytes:
    text = "".join(f"{code:0{width}b}" for code, width in codes_and_widths)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def test_the_classic_example() -> None:
    """TOBEORNOT: 256 is TO, 258 is BE, 260 is OR, 265 is TOB, and so on."""
    codes = (84, 79, 66, 69, 79, 82, 78, 79, 84, 256, 258, 260, 265, 259, 261, 263)
    coded = packed(*((code, 8 if place == 0 else 9) for place, code in enumerate(codes)))
    assert lzw.compress(b"TOBEORNOTTOBEORTOBEORNOT") == coded
    assert lzw.expand(coded, 24) == b"TOBEORNOTTOBEORTOBEORNOT"


@pytest.mark.parametrize("data", [b"", b"\0", b"ab", b"a" * 5000, bytes(range(256)) * 9])
def test_it_comes_back(data: bytes) -> None:
    assert lzw.expand(lzw.compress(data), len(data)) == data


@settings(max_examples=200)
@given(data=st.lists(st.sampled_from(b"ab\0\xff"), max_size=400))
def test_whatever_goes_in_comes_back(data: list[int]) -> None:
    assert lzw.expand(lzw.compress(bytes(data)), len(data)) == bytes(data)


def test_a_full_table_is_begun_anew_on_both_sides() -> None:
    """Random bytes add an entry nearly each: two tables and a part of a third."""
    data = np.random.default_rng(0).integers(0, 256, 150_000, dtype=np.uint8).tobytes()
    coded = lzw.compress(data)
    assert len(coded) > 2 * lzw.PERIOD
    assert lzw.expand(coded, len(data)) == data


def test_repetition_is_short() -> None:
    assert len(lzw.compress(b"abcd" * 2500)) < 500


@pytest.mark.parametrize("size", [0, 23, 25])
def test_another_size_than_announced_is_an_error(size: int) -> None:
    coded = lzw.compress(b"TOBEORNOTTOBEORTOBEORNOT")
    with pytest.raises(ValueError, match="bytes"):
        lzw.expand(coded, size)


def test_a_code_before_its_entry_is_an_error() -> None:
    with pytest.raises(ValueError, match="before its entry"):
        lzw.expand(packed((65, 8), (257, 9)), 3)


@settings(max_examples=300)
@given(junk=st.binary(max_size=300), size=st.integers(0, 2000))
def test_junk_is_those_bytes_or_a_value_error(junk: bytes, size: int) -> None:
    with suppress(ValueError):
        assert len(lzw.expand(junk, size)) == size


def test_a_few_bytes_cannot_ask_for_gigabytes() -> None:
    """Each code stands for one byte more than the last."""
    size = 2_000_000
    coded = lzw.compress(bytes(size))
    assert len(coded) < 4000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 20000"):
            lzw.expand(coded, size // 100)
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()
