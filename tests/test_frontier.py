"""What `bench amot` measures, resumes and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import amot, frontier, pair, plots
from common.errors import OffboardError
from common.profile import Manifest, load
from device.params import from_user
from device.planner import params_of
from tests.profiles import tiny

BUDGETS = [
    {"budget": 0.2, "r1": 0.1, "r2": 0.15, "threshold": 0.9, "accuracy": 0.5},
    {"budget": 0.4, "r1": 0.25, "r2": 0.2, "threshold": 0.8, "accuracy": 0.6},
]
TABLES: dict[str, Any] = {
    "amot": {"r1": 0.25, "r2": 0.25, "budgets": BUDGETS},
    "sdt": {
        "budgets": [{"budget": 0.3, "scale": 0.5, "r2": 0.1, "threshold": 0.8, "accuracy": 0.5,
                     "cost": 0.29}],
        "coded": [{"bytes": 1000, "scale": 0.5, "low_quality": 30, "r2": 0.1, "quality": 75,
                   "threshold": 0.5, "accuracy": 0.5, "cost": 900.0}],
    },
    "isr": {
        "budgets": [{"budget": 0.2, "scale": 0.4, "accuracy": 0.4, "cost": 0.16}],
        "coded": [{"bytes": 1000, "scale": 0.5, "quality": 30, "accuracy": 0.4, "cost": 900.0}],
    },
    "jpeg": {
        "coded": [
            {"bytes": b, "format": f, "scale": 0.5, "quality": q, "accuracy": 0.5, "cost": b - 1}
            for f in ("jpeg", "webp") for b, q in ((600, 10), (1000, 30), (2000, 60))
        ],
    },
}  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load(tiny(tmp_path, **TABLES)).manifest


def test_every_setting_is_one_that_the_device_takes(manifest: Manifest) -> None:
    for quick in (False, True):
        for config in frontier.configurations(manifest, quick):
            from_user(config.strategy, params_of(config.strategy), config.settings)


def test_each_method_has_its_own_settings_at_a_budget(manifest: Manifest) -> None:
    slo = {**manifest.params("amot"), "slo": {}}
    manifest = replace(manifest, strategies={**manifest.strategies, "amot": slo})
    made = frontier.configurations(manifest)
    at = {c.method: c.settings for c in made if (c.budget, c.coding) == (0.3, "raw")}
    # No budget of the profile's may cut these short.
    one = {"r1": 0.3, "threshold": 0.0, "budget": 0.0, "codec": "raw"}
    assert at["Non-R"] == {**one, "recovery": "none"}
    assert at["A-MOT-O"] == {**one, "recovery": "mae"}
    assert at["MOT"]["budget"] == 0.0
    # Nothing was chosen for 30 %: the setting for the largest budget below.
    assert at["MOT"]["r1"] == at["A-MOT"]["r1"] == 0.1
    assert at["MOT"]["slo_objective"] == "fixed"
    assert at["A-MOT"]["budget"] == 0.3
    assert at["A-MOT direct"] == {**at["A-MOT"], "recovery": "none"}
    assert at["SDT"] == {"scale": 0.5, "r2": 0.1, "threshold": 0.8, "codec": "raw"}
    assert made[0].strategy == "raw"
    assert not [c for c in made if c.method == "SDT" and c.budget == 0.2]
    assert {c.method for c in made} <= set(frontier.METHODS)


def test_methods_that_recover_have_settings_calibrated_so(manifest: Manifest) -> None:
    row = {"budget": 0.3, "r1": 0.2, "r2": 0.05, "threshold": 0.7, "accuracy": 0.5}
    row["adaptive"] = {"r1": 0.15, "threshold": 0.95}  # type: ignore[assignment]
    amot = {**manifest.params("amot"), "slo": {}, "recoveries": {"mae": {"budgets": [row]}}}
    manifest = replace(manifest, strategies={**manifest.strategies, "amot": amot})
    made = frontier.configurations(manifest)
    at = {c.method: c.settings for c in made if (c.budget, c.coding) == (0.3, "coded")}
    assert (at["MOT"]["r1"], at["MOT"]["recovery"]) == (0.2, "mae")
    assert (at["A-MOT"]["r1"], at["A-MOT"]["threshold"]) == (0.15, 0.95)
    assert (at["MOT direct"]["r1"], at["MOT direct"]["recovery"]) == (0.1, "none")
    assert not [c for c in made if c.method == "MOT" and c.budget == 0.2]


def test_quick_has_every_method_once(manifest: Manifest) -> None:
    made = frontier.configurations(manifest, quick=True)
    assert {c.method for c in made} == {c.method for c in frontier.configurations(manifest)}
    assert len(made) < 20
    assert [c.settings["quality"] for c in made if c.method == "WebP"] == [30]


def test_a_profile_without_tables_says_what_to_run(tmp_path: Path) -> None:
    plain = load(tiny(tmp_path)).manifest
    with pytest.raises(OffboardError, match=r"profiles\.calibrate tiny --amend"):
        frontier.configurations(plain)


def test_a_pattern_finds_methods_codings_and_budgets(manifest: Manifest) -> None:
    made = frontier.configurations(manifest)
    found = [c for c in made if c.matches("^(MOT|SDT) raw 40%")]
    assert [(c.method, c.budget) for c in found] == [("MOT", 0.4), ("SDT", 0.4)]


def test_multiply_adds_are_the_profiles_or_the_local_models(tmp_path: Path) -> None:
    profile = load(tiny(tmp_path, po={"device_macs": 7}, df={}))
    assert frontier.device_macs(profile, "amot") == 0
    assert frontier.device_macs(profile, "po") == 7
    assert frontier.device_macs(profile, "df") is None
    assert frontier.device_macs(profile, "local") == 3 * 4


def photos(directory: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for index in range(count):
        path = directory / ("n03394916" if index % 2 else "n01440764") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return directory


def test_rows_come_from_the_real_pair_and_are_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tiny(tmp_path, **TABLES)
    source, rows = photos(tmp_path / "photos", 5), tmp_path / "rows.json"
    command = ["--profile", str(directory), "--data", str(source), "--json", str(rows)]
    command += ["--frames", "3", "--resume"]
    assert amot.main([*command, "--only", "full|SDT raw 40%|WebP.*=60"]) == 0
    made = json.loads(rows.read_text())
    assert [row["method"] for row in made] == ["full frame", "SDT", "WebP"]
    full, sdt, webp = made
    assert all(set(pair.COLUMNS) <= set(row) and row["n"] == 3 for row in made)
    assert all(not isinstance(value, dict | list) for row in made for value in row.values())
    assert full["bytes_up"] > sdt["bytes_up"] > 32 * 32 * 3 > webp["bytes_up"] > 100
    assert (sdt["budget"], sdt["coding"], webp["device_macs"]) == (0.4, "raw", 0)

    monkeypatch.setattr(pair, "server", lambda *_: pytest.fail("nothing is left to measure"))
    assert amot.main([*command, "--only", "full|WebP.*=60"]) == 0
    assert json.loads(rows.read_text()) == made
    assert amot.main([*command, "--only", "SDT raw (40|60)%"]) == 0
    assert json.loads(rows.read_text()) == [*made, sdt | {"budget": 0.6}]  # at the same setting

    stale = [*made, sdt | {"config": "scale=0.123", "accuracy": 1.0}]
    rows.write_text(json.dumps(stale))
    (tmp_path / "amot.md").write_text("<!-- tiny -->\n<!-- /tiny -->\n")
    assert amot.main([*command, "--only", "NOTHING", "--docs", str(tmp_path)]) == 0
    assert "scale=0.123" not in (tmp_path / "amot.md").read_text()
    assert "scale=" in (tmp_path / "amot.md").read_text()
    assert json.loads(rows.read_text()) == stale
    capsys.readouterr()
    assert amot.main([*command[:-1], "--only", "NOTHING", "--data", str(tmp_path / "none")]) == 2


def test_a_subset_is_evenly_spaced_and_keeps_its_folders(tmp_path: Path) -> None:
    source = photos(tmp_path / "all", 10)
    every = pair.pictures(source)
    found = pair.pictures(amot.subset(source, 5, tmp_path / "some"))
    assert [path.name for path in found] == [every[index].name for index in range(0, 10, 2)]
    assert {pair.truth(path) for path in found} == {"tench", "French horn"}
    assert len(pair.pictures(amot.subset(source, 50, tmp_path / "more"))) == 10


def row(method: str, coding: str, budget: float | None, right: float, size: float) -> pair.Row:
    made: pair.Row = dict.fromkeys(pair.COLUMNS, 0)
    made |= {"profile": "tiny", "weights": "w", "n": 9, "method": method, "coding": coding}
    made |= {"budget": budget, "accuracy": right, "bytes_up": size, "device_macs": 0}
    return made | {"config": f"{method} {size:g}", "rounds": 1.5}


ROWS = [
    row("A-MOT", "raw", 0.2, 0.61, 30_000),
    row("A-MOT", "raw", 0.4, 0.72, 60_000),
    row("SDT", "raw", 0.4, 0.65, 60_000),
    row("A-MOT", "coded", 0.4, 0.71, 2900),
    row("JPEG", "coded", None, 0.81, 1400),
    row("JPEG", "coded", None, 0.79, 3500),
    row("local", "coded", None, 0.5, 0),
]


def test_budgets_stand_in_columns() -> None:
    lines = plots.budgets(ROWS).splitlines()
    assert lines[0] == "| method | 20% | 40% |"
    assert lines[2:] == ["| A-MOT | 61.0% | 72.0% |", "| SDT | - | 65.0% |"]


def test_at_equal_bytes_the_dearest_setting_stands_not_the_best_measured() -> None:
    lines = {line.split(" | ")[0]: line.split(" | ")[1:] for line in
             plots.equal_bytes(ROWS).splitlines()[2:]}  # fmt: skip
    assert lines["| JPEG"][:5] == ["-", "81.0%", "81.0%", "81.0%", "79.0%"]
    assert lines["| A-MOT"][:4] == ["-", "-", "-", "71.0%"]


def test_the_page_gets_tables_between_its_marks_and_plots(tmp_path: Path) -> None:
    page = tmp_path / "amot.md"
    page.write_text("before\n<!-- tiny -->\nold\n<!-- /tiny -->\nafter\n")
    plots.write(ROWS, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- tiny -->\n")
    assert text.endswith("\n<!-- /tiny -->\nafter\n")
    assert "old" not in text
    for name in ("tiny.svg", "tiny-budget.svg", "tiny-macs.svg"):
        assert f"({name})" in text
        assert "<svg" in (tmp_path / name).read_text()
    plots.write(ROWS, tmp_path)
    assert page.read_text() == text


def test_a_page_without_marks_and_mixed_rows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(OffboardError, match="has no lines <!-- tiny -->"):
        plots.write(ROWS, tmp_path)
    with pytest.raises(OffboardError, match="2 runs"):
        plots.write([*ROWS, ROWS[0] | {"n": 8}], tmp_path)
