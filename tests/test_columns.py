"""The code of maps: complete, bounded, cheaper by its contexts, and strict about what it reads."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import book
from common.columns import ColumnBook, trained
from common.guess import OWN, allowed, features
from tests.test_book import some

U8 = npt.NDArray[np.uint8]


def maps(count: int, seed: int = 0, channels: int = 24, side: int = 8, levels: int = 9) -> U8:
    """Symbols [count, channels, side, side], quieter by channel; some places are busier."""
    random = np.random.default_rng(seed)
    busy = random.uniform(0.1, 1.5, (count, 1, side // 2, side // 2)).repeat(2, 2).repeat(2, 3)
    scale = busy * np.exp(-np.arange(channels) / 6)[:, None, None]
    values = random.normal(size=(count, channels, side, side)) * scale
    return np.rint(values.clip(-4, 4) + levels // 2).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1,), (30,), (7, 9), (14, 3)]),
       st.sampled_from([2, 5, 33]), st.sampled_from([1, 3, 20]))  # fmt: skip
def test_what_was_coded_comes_back(
    seed: int, grid: tuple[int, ...], levels: int, channels: int
) -> None:
    made = trained(some(20, channels, *grid, levels=levels, seed=seed), levels)
    data = some(1, channels, *grid, levels=levels, seed=seed + 1)[0]  # of other statistics
    code = made.encode(data)
    assert np.array_equal(made.decode(code, *grid), data)
    assert len(code) <= made.longest(math.prod(grid))
    for wrong in (code + b"\0", code[:-1]):
        with pytest.raises(ValueError, match="code"):
            made.decode(wrong, *grid)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([(5,), (4, 3)]))
def test_any_bytes_are_symbols_or_refused(data: bytes, grid: tuple[int, ...]) -> None:
    made = trained(some(50, 12, *grid), 5)
    try:
        symbols = made.decode(data, *grid)
    except ValueError:
        return
    assert symbols.shape == (12, *grid)
    assert symbols.max() < 5


def test_where_much_was_more_is_expected() -> None:
    """Codes that know how busy a place is take less than those of a channel alone."""
    seen, held = maps(300), maps(20, seed=1)
    made, plain = trained(seen, 9), book.trained(seen, 9)
    assert made.guess.channels == 0
    one = ColumnBook(**{**made.tables, "bounds": np.full_like(made.tables["bounds"], 999)})
    sizes = [sum(len(each.encode(frame)) for frame in held) for each in (made, one, plain)]
    assert sizes[0] < 0.97 * sizes[1]
    assert sizes[0] < 0.95 * sizes[2]


def test_smooth_channels_are_guessed_and_take_less() -> None:
    """A slope is known from the mean to both sides of it."""
    random = np.random.default_rng(0)
    walk = random.integers(-3, 4, (200, 1, 8, 9)).cumsum(3) + 40
    slope = walk[..., 1:] - walk[..., :-1] + 40
    noise = random.integers(38, 43, (200, 1, 8, 8))
    symbols = np.concatenate((walk[..., 1:], slope, noise), axis=1).clip(0, 80).astype(np.uint8)
    made = trained(symbols[:150], 81)
    assert made.guess.channels == 2
    code = made.encode(symbols[160])
    assert np.array_equal(made.decode(code, 8, 8), symbols[160])
    rest, plain = trained(symbols[:150, 2:], 81), book.trained(symbols[:150, :2], 81)
    both = sum(len(made.encode(each)) - len(rest.encode(each[2:])) for each in symbols[150:])
    assert both < 0.8 * sum(len(plain.encode(each[:2])) for each in symbols[150:])


def test_a_guess_is_from_what_is_known_by_then() -> None:
    """No tap of a channel itself but for two, and those two never see what is yet to come."""
    usable = allowed(3)
    assert usable.sum(0).tolist() == [2, 11, 20]
    symbols = np.arange(24, dtype=np.float32).reshape(4, 6, 1)
    beside, above = (features(symbols, -1)[:, part].reshape(4, 6) for part in OWN)
    assert beside[0].tolist() == [-1, 0, 1, 2, 3, 4]
    assert beside[1].tolist() == [0, 6, 7, 8, 9, 10]
    assert above[0].tolist() == [-1, 0, 1, 2, 3, 4]
    assert above[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_place_has_only_so_many_channels() -> None:
    with pytest.raises(ValueError, match="1024 channels"):
        trained(np.zeros((1, 1025, 1), np.uint8), 2)


@pytest.mark.parametrize("change", ["short", "incomplete", "endless", "zeros", "bounds", "taps"])
def test_a_book_that_is_none_is_refused(change: str) -> None:
    tables = {name: values.copy() for name, values in trained(some(9, 3, 50), 5).tables.items()}
    if change == "short":
        tables["lengths"] = tables["lengths"][..., 1:]
    elif change == "incomplete":
        row = tables["lengths"][1, 2]
        row[row.argmax()] += 1
    elif change == "endless":
        tables["lengths"][0, 0, -2] = 0
    elif change == "zeros":
        tables["zeros"][2] = 5
    elif change == "bounds":
        tables["bounds"] = tables["bounds"][:2]
    else:
        tables["taps"] = np.ones((9, 1), np.int16)
    with pytest.raises(ValueError, match=r"book|code"):
        ColumnBook.read(tables)
