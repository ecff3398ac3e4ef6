"""The code of symbols: complete, bounded, near the entropy, and strict about what it reads."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import huffman
from common.book import Book, expected, trained

U8 = npt.NDArray[np.uint8]
SHARES = (0.9, 0.06, 0.03, 0.01)


def some(count: int, *shape: int, levels: int = 5, seed: int = 0) -> U8:
    """Symbols [count, *shape] whose channels differ in how often each occurs."""
    random = np.random.default_rng(seed)
    shares = [random.dirichlet(np.full(levels, 0.4)) for _ in range(shape[0])]
    rows = [random.choice(levels, (count, *shape[1:]), p=share) for share in shares]
    return np.stack(rows, axis=1).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1,), (60,), (7, 9), (28, 28)]),
       st.sampled_from([2, 5, 33]))  # fmt: skip
def test_what_was_coded_comes_back(seed: int, grid: tuple[int, ...], levels: int) -> None:
    book = trained(some(20, 3, *grid, levels=levels, seed=seed), levels)
    data = some(1, 3, *grid, levels=levels, seed=seed + 1)[0]  # of other statistics
    code = book.encode(data)
    assert np.array_equal(book.decode(code, *grid), data)
    assert len(code) <= book.longest(math.prod(grid))
    for wrong in (code + b"\0", code[:-1]):
        with pytest.raises(ValueError, match="code"):
            book.decode(wrong, *grid)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 60))
def test_any_bytes_are_symbols_or_refused(data: bytes, count: int) -> None:
    book = trained(some(50, 3, 60), 5)
    try:
        symbols = book.decode(data, count)
    except ValueError:
        return
    assert symbols.shape == (3, count)
    assert symbols.max() < 5


def test_it_comes_near_the_entropy() -> None:
    random = np.random.default_rng(0)
    many = random.choice(4, (400, 2, 20, 20), p=SHARES).astype(np.uint8)
    book = trained(many[:200], 4)
    size = np.mean([len(book.encode(each)) for each in many[200:]])
    entropy = -sum(share * math.log2(share) for share in SHARES) * 800 / 8
    assert entropy < size < entropy * 1.06  # a code for every symbol alone would take twice that


def test_a_channel_of_zeros_alone_takes_a_bit_or_two() -> None:
    blank = np.full((10, 8, 100), 4, np.uint8)
    book = trained(blank, 9)
    assert len(book.encode(blank[0])) <= 2
    other = np.random.default_rng(0).integers(0, 9, (8, 100), dtype=np.uint8)  # never seen
    assert np.array_equal(book.decode(book.encode(other), 100), other)


def test_smooth_channels_are_predicted_and_take_less() -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 30, (60, 1, 4, 4)).repeat(4, 2).repeat(4, 3)
    smooth = (coarse + random.integers(0, 2, coarse.shape)).astype(np.uint8)
    noise = random.permutation(smooth.reshape(-1)).reshape(smooth.shape)
    book = trained(np.concatenate((smooth, noise), axis=1), 31)
    assert book.tables["predicted"].tolist() == [True, False]
    plain = Book(**{**trained(smooth, 31).tables, "predicted": np.array([False])})
    assert plain.levels == 31
    sizes = [len(trained(kind[:40], 31).encode(kind[50])) for kind in (smooth, noise)]
    assert sizes[0] < 0.75 * sizes[1]


def test_what_is_expected_is_the_mean_of_left_and_above() -> None:
    grid = np.array([[[1, 5], [4, 0], [7, 7]]], dtype=np.int16)
    assert expected(grid).tolist() == [[[0, 1], [1, 5], [4, 4]]]
    assert expected(np.array([[3, 1, 2]], dtype=np.int16)).tolist() == [[0, 3, 1]]


def test_lengths_are_the_best_where_the_bound_is_far() -> None:
    assert huffman.lengths(np.array([8, 4, 2, 1, 1])).tolist() == [1, 2, 3, 4, 4]
    assert huffman.lengths(np.ones(8)).tolist() == [3] * 8


def test_lengths_keep_to_the_bound() -> None:
    found = huffman.lengths(2.0 ** np.arange(40))
    assert found.max() == huffman.LONGEST
    assert (0.5**found).sum() == 1


@pytest.mark.parametrize("change", ["short", "incomplete", "endless", "zeros", "marks"])
def test_a_book_that_is_none_is_refused(change: str) -> None:
    tables = {name: values.copy() for name, values in trained(some(9, 3, 50), 5).tables.items()}
    if change == "short":
        tables["lengths"] = tables["lengths"][:, 1:]
    elif change == "incomplete":
        tables["lengths"][1, tables["lengths"][1].argmax()] += 1
    elif change == "endless":
        tables["lengths"][0, -2] = 0
    elif change == "zeros":
        tables["zeros"][2] = 5
    else:
        tables["predicted"] = tables["predicted"][:2]
    with pytest.raises(ValueError, match=r"book|code"):
        Book.read(tables)
