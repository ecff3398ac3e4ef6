"""Plans: what was asked for, checked, and `local` while the link is down."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ConfigError
from device.planner import Choice, Planner
from tests.device_stub import local_model, manifest

WITH_LOCAL = manifest({"device/local.onnx": local_model()})
WITHOUT = manifest({})


def test_the_choice_is_the_plan_while_connected() -> None:
    planner = Planner(WITH_LOCAL, Choice("jpeg", {"quality": "60"}, 250.0))
    plan = planner.plan(connected=True, local=True)
    assert (plan.strategy, plan.params, plan.deadline_ms) == ("jpeg", {"quality": 60}, 250.0)


def test_nobody_chose_so_the_profile_does() -> None:
    assert Planner(WITH_LOCAL, Choice()).strategy == "amot"
    only = manifest({}, amot={}, jpeg={}, raw={})
    strategies = {"jpeg": only.strategies["jpeg"]}
    few = type(only)(only.name, only.task, only.classes, only.input, strategies)
    assert Planner(few, Choice()).strategy == "jpeg"
    none = type(only)(only.name, only.task, only.classes, only.input, {"odd": {}})
    with pytest.raises(ConfigError, match="no strategy that this device knows"):
        Planner(none, Choice())


def test_a_link_that_is_down_is_not_waited_for() -> None:
    planner = Planner(WITH_LOCAL, Choice("amot", {"r1": 0.1}, 100.0))
    plan = planner.plan(connected=False, local=True)
    assert (plan.strategy, plan.params, plan.deadline_ms) == ("local", {}, 100.0)
    assert planner.plan(connected=False, local=False).strategy == "amot"
    assert planner.plan(connected=True, local=True).strategy == "amot"


@pytest.mark.parametrize(
    ("strategy", "params", "deadline", "complaint"),
    [
        ("jpg", {}, None, "choose one of amot, .*jpeg, .*local, .*raw"),
        ("local", {}, None, "does not offer 'local'"),
        ("jpeg", {"qualty": "60"}, None, r"it has: quality \(a whole number from 1 to 100\)"),
        ("jpeg", {"quality": "0"}, None, "quality=0: quality is a whole number from 1 to 100"),
        ("jpeg", {"quality": "7.5"}, None, "whole number"),
        ("jpeg", {"quality": 7.5}, None, "whole number"),
        ("jpeg", {"scale": "nan"}, None, "from 0.05 to 1"),
        ("amot", {"codec": "gif"}, None, "one of mosaic, raw, lz4, zstd"),
        ("amot", {"r1": "much"}, None, "r1 is a number"),
        ("amot", {"r1": None}, None, "r1 is a number"),
        ("local", {"r1": "0.1"}, None, "it has: none"),
        (None, {"qualty": "60"}, None, "'amot' has no parameter 'qualty'"),
        ("raw", {}, -1.0, "above zero"),
        ("raw", {}, float("nan"), "above zero"),
    ],
)
def test_what_is_wrong_is_named(
    strategy: str | None, params: dict[str, Any], deadline: float | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Planner(WITHOUT, Choice(strategy, params, deadline))


def test_the_profiles_own_parameters_are_checked_too() -> None:
    from device.bundle import Bundle
    from device.strategies import jpeg
    from tests.test_bundle import NOWHERE

    with pytest.raises(ConfigError, match="quality=200"):
        jpeg.create(Bundle(manifest({}, jpeg={"quality": 200}), NOWHERE))
    made = jpeg.create(Bundle(manifest({}, jpeg={"quality": 30, "batch": 9}), NOWHERE))
    assert made.params == {"quality": 30, "scale": 1.0, "format": "jpeg"}
