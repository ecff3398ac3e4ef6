"""Reading traces, and what they say."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traces import Trace, folder, load
from common.errors import ConfigError


def written(directory: Path, *lines: str, name: str = "a.csv") -> Path:
    path = directory / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    trace = load(written(tmp_path, "t_s,uplink_mbps", "0.0,1.0", "0.1,0.000", "0.2,3"))
    assert trace.times == (0.0, 0.1, 0.2)
    assert trace.mbps == (1.0, 0.0, 3.0)
    assert trace.length == pytest.approx(0.3)
    assert trace.mean == pytest.approx(4 / 3)
    assert [trace.at(t) for t in (0.05, 0.15, 0.25, 0.35)] == [1.0, 0.0, 3.0, 1.0]


def test_a_late_start_counts_from_zero(tmp_path: Path) -> None:
    trace = load(written(tmp_path, "t_s,mbps", "5.0,1", "5.5,2"))
    assert trace.times == (0.0, 0.5)
    assert trace.length == 1.0


@pytest.mark.parametrize(
    "lines",
    [
        ["0.0,1.0"],
        ["t_s,mbps"],
        ["t_s,mbps", "0.0"],
        ["t_s,mbps", "0.0,fast"],
        ["t_s,mbps", "0.0,-1"],
        ["t_s,mbps", "0.0,nan"],
        ["t_s,mbps", "0.0,1", "0.0,2"],
        ["t_s,mbps", "0.0,1,2"],
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"a\.csv"):
        load(written(tmp_path, *lines))


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.csv"):
        folder(tmp_path)
    written(tmp_path, "t_s,mbps", "0,1", name="b.csv")
    written(tmp_path, "t_s,mbps", "0,2", name="a.csv")
    assert {name: t.mbps for name, t in folder(tmp_path).items()} == {"a": (2.0,), "b": (1.0,)}


def test_bits_take_their_time() -> None:
    trace = Trace((0.0, 1.0, 2.0), (1.0, 0.0, 2.0), 3.0)
    assert trace.finish(0.0, 0.5e6) == pytest.approx(0.5)
    assert trace.finish(0.5, 0.5e6) == pytest.approx(1.0)
    assert trace.finish(0.5, 1.0e6) == pytest.approx(2.25)  # waits out the zero
    assert trace.finish(1.5, 0.2e6) == pytest.approx(2.1)
    assert trace.finish(2.5, 2.0e6) == pytest.approx(4.0)  # goes on from the start
    assert trace.finish(0.0, 30e6) == pytest.approx(30.0)
    assert trace.finish(6.5, 1.0e6) == pytest.approx(8.25)


def test_constants_and_dead_links() -> None:
    assert Trace.constant(8.0).finish(10.0, 8e6) == pytest.approx(11.0)
    assert Trace.constant(math.inf).finish(1.0, 0.0) == 1.0
    assert Trace.constant(0.0).finish(1.0, 8.0) == math.inf
    assert Trace((0.0,), (0.0,), 1.0).finish(0.0, 8.0) == math.inf
    assert Trace.constant(3.0).mean == 3.0


@given(
    st.lists(st.floats(0.0, 50.0), min_size=1, max_size=8).filter(lambda r: sum(r) > 1.0),
    st.floats(0.0, 5.0),
    st.lists(st.integers(1, 100_000), min_size=1, max_size=10),
)
def test_pieces_take_as_long_as_the_whole(
    rates: list[float], start: float, sizes: list[int]
) -> None:
    steps = tuple(i / 10 for i in range(len(rates)))
    trace = Trace(steps, tuple(rates), len(rates) / 10)
    now = start
    for size in sizes:
        after = trace.finish(now, size * 8.0)
        assert after >= now
        now = after
    assert now == pytest.approx(trace.finish(start, sum(sizes) * 8.0), abs=1e-6)
