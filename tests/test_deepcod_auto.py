"""DeepCOD's point "auto": measured, chosen by the link, changed without a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.messages import Query
from common.profile import Profile, load
from device.bundle import Bundle
from device.link import UNKNOWN, Estimate
from device.strategies import deepcod
from device.strategy import Frame, Plan
from profiles.amend import amend
from profiles.measuring import deepcod as measuring
from tests.profiles import picture, tiny

ROWS = [
    {"point": "input", "rate": 1, "device_ms": 1.0, "server_ms": 10.0, "bytes": 4000},
    {"point": "input", "rate": 2, "device_ms": 1.0, "server_ms": 10.0, "bytes": 8000},
    {"point": "block-1", "rate": 1, "device_ms": 9.0, "server_ms": 8.0, "bytes": 500},
]


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    root = tiny(tmp_path)
    amend(root, strategies={"deepcod": {"point": "auto", "measured": ROWS}})
    return load(root)


def device(profile: Profile) -> deepcod.DeepCod:
    present = {file.path for file in profile.manifest.files}
    return deepcod.create(Bundle(profile.manifest, profile.directory, present))


def sent(made: deepcod.DeepCod, profile: Profile, link: Estimate, **params: Any) -> Query:
    frame = Frame(1, "1", picture(profile, 1), 0.0)
    return next(made.infer(frame, Plan("deepcod", params, link=link)))


def test_the_point_follows_the_link(profile: Profile) -> None:
    made = device(profile)
    for mbps, point in ((100.0, "input"), (0.5, "block-1"), (100.0, "input")):
        query = sent(made, profile, Estimate(mbps * 125e3, 0.01))
        assert query.params == {"point": point, "rate": 1}
    assert sent(made, profile, UNKNOWN).params["point"] == "input"
    assert sent(made, profile, Estimate(most=60e3)).params["point"] == "block-1"


def test_a_point_that_is_set_stays(profile: Profile) -> None:
    query = sent(device(profile), profile, Estimate(1e3), point="input", rate=2)
    assert query.params == {"point": "input", "rate": 2}


def test_the_rate_asked_for_is_taken_where_there_is_one(profile: Profile) -> None:
    made = device(profile)
    assert sent(made, profile, Estimate(1e9), rate=2).params == {"point": "input", "rate": 2}
    assert sent(made, profile, Estimate(1e5), rate=2).params == {"point": "block-1", "rate": 1}


def test_a_profiles_rate_is_no_demand_on_other_points(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    amend(root, strategies={"deepcod": {"point": "input", "rate": 2}})
    profile = load(root)
    made = device(profile)
    assert sent(made, profile, UNKNOWN).params == {"point": "input", "rate": 2}
    query = sent(made, profile, UNKNOWN, point="block-1")
    assert query.params == {"point": "block-1", "rate": 1}
    with pytest.raises(ConfigError, match="no rate 2 of 'deepcod' at block-1: choose 1 to 1"):
        sent(made, profile, UNKNOWN, point="block-1", rate=2)


def test_all_that_it_may_take_is_loaded_beforehand(profile: Profile) -> None:
    made = device(profile)
    before = dict(made.encoders), dict(made.heads)
    assert {key[:2] for key in made.encoders} == {("input", 1), ("block-1", 1)}
    for link in (Estimate(1e3), Estimate(1e9)):
        sent(made, profile, link)
    assert (made.encoders, made.heads) == before


def test_without_measurements_it_says_what_to_do(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    amend(root, strategies={"deepcod": {"point": "auto"}})
    with pytest.raises(ConfigError, match=r"\./run measure"):
        device(load(root))


def test_measuring_gives_rows_that_auto_takes(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    measured = measuring.measure(load(root))
    rows = measured["measured"]
    assert [(row["point"], row["rate"]) for row in rows] == [
        ("input", 1), ("input", 2), ("block-1", 1)
    ]  # fmt: skip
    assert all(row["device_ms"] > 0 and row["server_ms"] > 0 for row in rows)
    assert [row["bytes"] for row in rows] == [40.0, 60.0, 50.0]
    assert measured["point"] == "auto"
    assert len(measuring.tables(measured).splitlines()) == 2 + len(rows)
    amend(root, strategies={"deepcod": measured})
    made = device(load(root))
    assert sent(made, load(root), UNKNOWN).params["point"] in ("input", "block-1")


def test_a_profile_without_points_cannot_be_measured(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    amend(root, strategies={"deepcod": {"points": []}})
    with pytest.raises(ConfigError, match="train deepcod first"):
        measuring.measure(load(root))
