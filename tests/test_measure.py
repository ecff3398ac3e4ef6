"""`./run measure`: that it finds what can be measured, and writes it where strategies read it."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common import profile as profiles
from common import registry
from common.errors import ConfigError
from common.profile import Profile
from device.machine import Machine
from profiles import export_janus, measure, measuring
from profiles.measuring.janus import knots, on_server
from server.models.vit import VisionTransformer, ViTConfig
from tests.profiles import tiny


@pytest.fixture
def measurers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Strategies "raw" and "absent" can be measured; "raw" gives what is in the dict returned."""
    gives: dict[str, Any] = {"ms": [1.5, 2.5]}
    for name in ("raw", "absent"):
        module = ModuleType(f"{measure.MEASURING}.{name}")

        def made(profile: Profile) -> dict[str, Any]:
            if isinstance(gives.get("ms"), Exception):
                raise gives["ms"]
            return gives

        def shown(measured: Mapping[str, Any]) -> str:
            return f"| ms | {measured['ms']} |"

        module.measure, module.tables = made, shown  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "names", lambda package: ("absent", "raw"))
    return gives


def test_what_the_profile_offers_is_measured_printed_and_kept(
    tmp_path: Path, measurers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny(tmp_path)
    before = profiles.load(root).manifest
    assert measure.main([str(root)]) == 0
    after = profiles.load(root).manifest
    assert after.params("raw") == {**before.params("raw"), "ms": [1.5, 2.5]}
    assert "absent" not in after.strategies
    assert "| ms | [1.5, 2.5] |" in capsys.readouterr().out


def test_dry_leaves_the_profile_alone(tmp_path: Path, measurers: dict[str, Any]) -> None:
    root = tiny(tmp_path)
    before = (root / "profile.json").read_bytes()
    assert measure.main([str(root), "--dry"]) == 0
    assert (root / "profile.json").read_bytes() == before


@pytest.mark.parametrize(
    ("only", "says"),
    [(["absent"], "does not offer 'absent'"), (["jpeg"], "nothing of 'jpeg' is measured")],
)
def test_what_cannot_be_measured_is_said(
    tmp_path: Path,
    measurers: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    only: list[str],
    says: str,
) -> None:
    assert measure.main([str(tiny(tmp_path)), "--only", *only]) == 2
    assert says in capsys.readouterr().err


def test_a_profile_without_anything_to_measure_is_an_error(
    tmp_path: Path, measurers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda package: ("absent",))
    with pytest.raises(ConfigError, match="none of what is measured: absent"):
        measure.measurable(profiles.load(tiny(tmp_path)).manifest)


def test_an_error_of_a_measurement_changes_nothing(
    tmp_path: Path, measurers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny(tmp_path)
    measurers["ms"] = ConfigError("no encoder to measure")
    before = json.loads((root / "profile.json").read_text())
    assert measure.main([str(root)]) == 2
    assert "no encoder to measure" in capsys.readouterr().err
    assert json.loads((root / "profile.json").read_text()) == before


def test_the_lower_quartile_leaves_the_first_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock stands but in the calls: 9 s the first, then 1, 2, 3, 4, 5 s.
    clock = [0.0]
    spent = itertools.chain([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], itertools.repeat(99.0))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(spent)

    assert measuring.milliseconds(call, runs=5, seconds=100.0) == 2000.0


def test_a_slow_call_is_run_three_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls: list[int] = []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        calls.append(1)
        clock[0] += 10.0

    assert measuring.milliseconds(call, seconds=0.5) == 10_000.0
    assert len(calls) == 1 + 3


def test_janus_is_measured_as_it_is_served(tmp_path: Path) -> None:
    """Of the tiny profile's layers: what is kept is what the scheduler reads."""
    root = tiny(tmp_path)
    profile = profiles.load(root)
    if "janus" not in profile.manifest.strategies:
        export_janus.publish(root)
    assert measure.main([str(root), "--only", "janus"]) == 0
    params = profiles.load(root).manifest.params("janus")
    latency = params["latency"]
    for side in ("device", "server"):
        machine = Machine.read(latency[side])
        assert machine.tokens[-1] == params["tokens"]
        assert min(machine.ms) > 0
        assert machine.first > 0
        assert latency[side]["slope"] == pytest.approx(machine.fit[0], rel=0.05, abs=1e-4)
    bytes_of = {name: coding["token"] for name, coding in latency["codings"].items()}
    assert bytes_of["int8"] < bytes_of["fp16"] < bytes_of["fp32"]
    frames = [latency["frames"][f"jpeg-{quality}"]["fixed"] for quality in (90, 75, 50)]
    assert frames == sorted(frames, reverse=True)
    given = profile.manifest.input
    raw = pytest.approx(given.height * given.width * 3, rel=1e-3)
    assert latency["frames"]["raw"]["fixed"] == raw
    assert latency["frames"]["lzw"]["fixed"] > 0


def test_knots_rise_to_all_tokens() -> None:
    for tokens in (17, 197, 577):
        found = knots(tokens)
        assert found == sorted({*found})
        assert found[0] >= 4
        assert found[-1] == tokens


def test_a_clips_model_is_measured_too() -> None:
    config = ViTConfig(dim=12, depth=1, heads=2, classes=3, image=32, frames=6, tubelet=2)
    machine = on_server(VisionTransformer(config).eval(), [4, 13])
    assert min(*machine.ms, machine.first, machine.last) > 0
