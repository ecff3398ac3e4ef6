"""Calibration: that it measures what is served, and chooses within a budget on other frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import profile as profiles_of
from common.profile import Profile
from device.strategy import Frame
from profiles import calibrate, figures, sweep
from profiles.sweep import Outcomes, Setting
from profiles.train import plan_signs, signs
from profiles.train.photos import Photos
from server.serving import Serving
from server.slo import Table
from server.strategies import amot
from tests.profiles import picture, tiny

FIRSTS, RATIOS = (0.25, 0.5, 1.0), (0.0, 0.25, 0.5)


def outcomes(confidence: list[float], right: list[list[bool]]) -> Outcomes:
    """Frames with one first ratio, 0.25, and `RATIOS`."""
    sure = np.array(confidence, np.float32)[:, None]
    return Outcomes((0.25,), RATIOS, sure, np.array(right)[:, None])


def drawn(count: int, seed: int = 0) -> Outcomes:
    """Frames that are the more often right the more is sent, surer ones at once."""
    random = np.random.default_rng(seed)
    hard = random.random((count, 1, 1))
    share = np.add.outer(np.array(FIRSTS), np.array(RATIOS))
    confidence = np.clip(1.1 - hard[:, 0] + 0.2 * random.standard_normal((count, 3)), 0, 1)
    return Outcomes(FIRSTS, RATIOS, confidence.astype(np.float32), share > hard)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return calibrate.bared(profiles_of.load(tiny(tmp_path)), [])


@pytest.fixture
def unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny classifier is sure of itself without reason: let its frames ask all the same."""
    monkeypatch.setattr(sweep, "CERTAIN", 1.0)


def photos(profile: Profile, count: int = 5) -> Photos:
    frames = np.stack([picture(profile, seed) for seed in range(count)])
    return Photos(frames, np.arange(count) % len(profile.manifest.classes))


def test_the_scenes_are_none_that_were_trained_chosen_or_reported_on() -> None:
    used = {*calibrate.SEEDS[: calibrate.FRAMES]}
    assert len(used) == calibrate.FRAMES
    assert used <= {*signs.CALIBRATION}
    for taken in (plan_signs.SEEDS, plan_signs.CHOOSING, plan_signs.REPORTED):
        assert used.isdisjoint(taken)
    assert used.isdisjoint(signs.TRAINING)
    assert used.isdisjoint(signs.EVALUATION)


def test_outcomes_are_what_the_strategy_answers_frame_by_frame(
    profile: Profile, tmp_path: Path, unsure: None
) -> None:
    data = photos(profile)
    pair = calibrate.Pair(profile)
    found = calibrate.outcomes_of(pair, data, FIRSTS, RATIOS, tmp_path, batch=3)
    served = amot.create(Serving(profile))
    rounds = set()
    for index, first, second in np.ndindex(found.right.shape):
        r1, r2 = FIRSTS[first], RATIOS[second]
        frame = Frame(index, "", data.frames[index], 0.0)
        (talk,) = pair.open([frame], r1=r1, r2=r2, threshold=sweep.CERTAIN)
        while talk.query is not None:
            (outcome,) = served.forward([served.prepare(talk.query, talk)])
            talk.answer(outcome)
        asked = r2 > 0 and r1 < 1 and talk.said[0].max() < sweep.CERTAIN
        assert len(talk.said) == 1 + asked
        rounds.add(len(talk.said))
        assert found.confidence[index, first] == pytest.approx(talk.said[0].max(), abs=1e-5)
        assert found.right[index, first, second] == (talk.said[-1].argmax() == data.labels[index])
    assert rounds == {1, 2}


def test_round_one_is_recovered_once_for_all_second_ratios(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, unsure: None
) -> None:
    recovered: list[int] = []
    recover = Serving.recover

    def counted(self: Serving, patches: Any, indices: Any) -> Any:
        recovered.append(len(indices[0]))
        return recover(self, patches, indices)

    monkeypatch.setattr(Serving, "recover", counted)
    grid = Outcomes((0.25,), RATIOS, np.zeros((0, 1), np.float32), np.zeros((0, 1, 3), np.bool_))
    calibrate.passes(calibrate.Pair(profile), photos(profile), range(5), grid)
    assert recovered == [4, 8, 12]


def test_an_interrupted_run_goes_on_and_more_frames_and_first_ratios_are_added(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pair = photos(profile), calibrate.Pair(profile)
    expected = calibrate.outcomes_of(pair, data, FIRSTS, RATIOS, tmp_path / "whole")
    kept = tmp_path / "kept"
    calibrate.outcomes_of(pair, data.take(np.arange(2)), FIRSTS[:2], RATIOS, kept)
    done: list[tuple[float, range]] = []
    passes = calibrate.passes

    def noted(pair: Any, photos: Any, part: range, grid: Any) -> Any:
        done.append((*grid.firsts, part))
        return passes(pair, photos, part, grid)

    monkeypatch.setattr(calibrate, "passes", noted)
    again = calibrate.outcomes_of(pair, data, FIRSTS, RATIOS, kept, batch=3)
    known = [(r1, range(2, 5)) for r1 in FIRSTS[:2]]
    assert done == [*known, (FIRSTS[2], range(3)), (FIRSTS[2], range(3, 5))]
    np.testing.assert_array_equal(again.right, expected.right)
    np.testing.assert_array_equal(again.confidence, expected.confidence)
    few = calibrate.outcomes_of(pair, data.take(np.arange(3)), FIRSTS, RATIOS, kept)
    assert (len(few), len(done)) == (3, 4)


def test_outcomes_are_kept_by_what_they_depend_on(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    kept = calibrate.kept_at(profile, [], RATIOS)
    assert kept == calibrate.kept_at(calibrate.bared(profile, []), [], RATIOS)
    assert kept != calibrate.kept_at(calibrate.bared(profile, ["quality=25"]), [], RATIOS)
    assert kept != calibrate.kept_at(profile, [], RATIOS[:2])
    vit = replace(profile.models["vit"], sha256="0" * 64)
    trained = replace(profile, models={**profile.models, "vit": vit})
    assert kept != calibrate.kept_at(trained, [], RATIOS)


def test_the_table_has_the_smallest_ratio_that_makes_a_frame_right() -> None:
    found = outcomes(
        [0.25, 0.25, 0.25, 0.95, 1.0],
        [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1]],  # type: ignore[list-item]
    )
    counts, p = sweep.table(found, 0.25)
    assert counts.tolist() == [0, 0, 3, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(p[:, 2], [0, 1 / 3, 1 / 3])
    np.testing.assert_allclose(p[:, 9], [1 / 2, 0, 1 / 2])
    assert not p[:, [0, 1, 3, 4, 5, 6, 7, 8]].any()


def test_intervals_are_those_of_the_server() -> None:
    served = Table(np.array([0.0]), np.array(sweep.EDGES), ())
    confidence = np.array([0.0, 0.05, 0.1, 0.3, 0.699, 0.7, 0.95, 1.0])
    ours = sweep.intervals(confidence.astype(np.float64))
    assert ours.tolist() == [served.interval(each) for each in confidence]


def test_a_setting_asks_below_its_threshold_by_interval() -> None:
    found = outcomes([0.25, 0.55, 0.85], [[False, False, True]] * 3)
    ratios = (0.0, 0.0, 0.25, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0)
    scored = sweep.score(found, Setting(0.25, 0.8, ratios))
    assert scored.right.tolist() == [False, True, False]
    np.testing.assert_allclose(scored.sent, [0.5, 0.75, 0.25])
    assert scored.accuracy == pytest.approx(1 / 3)
    one = sweep.score(found, Setting.same(0.25, 0.0, 0.8))
    assert one.share == pytest.approx(0.25)


def test_second_ratios_go_where_they_help() -> None:
    """Half of the frames need 0.5 more, half are lost: only the first half may have it."""
    found = outcomes([0.25] * 10 + [0.55] * 10, [[False] * 3] * 10 + [[False, False, True]] * 10)
    setting = sweep.amot(found, 0.5)
    assert setting is not None
    assert (setting.ratios[2], setting.ratios[5]) == (0.0, 0.5)
    assert sweep.score(found, setting).accuracy == 0.5
    uniform = sweep.mot(found, 0.5)
    assert uniform is not None
    assert sweep.score(found, uniform).accuracy == 0


@pytest.mark.parametrize("method", figures.METHODS.values())
def test_every_method_keeps_to_its_budget(method: sweep.Method) -> None:
    found = drawn(200)
    for budget in (0.25, 0.4, 0.7, 1.0):
        setting = method(found, budget)
        assert setting is not None
        assert sweep.score(found, setting).share <= budget + 1e-9
    assert method(found, 0.2) is None


def test_a_method_is_scored_on_frames_that_it_did_not_choose_on() -> None:
    found = drawn(11)
    marks: list[tuple[Outcomes, float]] = []

    def method(fit: Outcomes, budget: float) -> Setting:
        marks.append((fit, budget))
        return Setting.same((0.25, 0.5)[len(marks) - 1], 0.0, 0.0)

    scored = sweep.crossed(found, 0.5, method)
    assert scored is not None
    (even, _), (odd, _) = marks
    np.testing.assert_array_equal(even.right, found.right[::2])
    np.testing.assert_array_equal(odd.right, found.right[1::2])
    expected = [*found.right[1::2, 0, 0], *found.right[::2, 1, 0]]
    assert scored.right.tolist() == expected
    np.testing.assert_allclose(scored.sent, [0.25] * 5 + [0.5] * 6)


def test_every_step_from_photos_to_a_profile_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tiny(tmp_path)
    data = photos(profiles_of.load(directory), 12)
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "photographs", lambda *_: data)
    report, plots = tmp_path / "report.md", tmp_path / "plots"
    plots.mkdir()
    command = [str(directory), "--budget", "0.5", "--r1", "0.25", "0.5", "1", "--ratios", "0.25"]
    command += ["0.5", "--amend", "--report", str(report), "--plots", str(plots)]
    assert calibrate.main(command) == 0
    assert "| 50% |" in capsys.readouterr().out
    amended = profiles_of.load(directory)
    params = amended.manifest.params("amot")
    row = next(row for row in params["budgets"] if row["budget"] == 0.5)
    assert {name: params[name] for name in calibrate.SETTING} == {
        name: row[name] for name in calibrate.SETTING
    }
    assert (params["codec"], params["quality"]) == ("mosaic", 75)
    table = Table.from_mapping(params["slo"])
    assert {each.r1 for each in table.tables} == {0.25, params["r1"]}
    assert table.tables[0].counts.sum() == 12
    assert [*table.bytes["raw"]] == [768, 768]
    assert 0 < table.bytes["mosaic"][0] < 768
    record = amended.made["calibration"]
    assert record["frames"].startswith("12 ")
    assert record["command"].startswith("python -m profiles.calibrate tiny --budget 0.5 --r1 0.25")
    assert str(tmp_path) not in report.read_text() + record["command"]
    amot.create(Serving(amended)).warm()
    assert "Fig. 13" in report.read_text()
    drawings = sorted(path.name for path in plots.iterdir())
    assert drawings == [f"tiny-{s}.svg" for s in ("confidence", "first-ratio", "strategies")]


def test_another_recovery_is_calibrated_beside_the_profiles_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny(tmp_path)
    data = photos(profiles_of.load(directory), 4)
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "photographs", lambda *_: data)
    command = [str(directory), "--budget", "0.5", "--r1", "0.25", "--ratios", "0.25", "--amend"]
    assert calibrate.main(command) == 0
    own = profiles_of.load(directory).manifest.params("amot")
    report = tmp_path / "report.md"
    assert calibrate.main([*command, "--set", "recovery=none", "--report", str(report)]) == 0
    both = dict(profiles_of.load(directory).manifest.params("amot"))
    assert {*both.pop("recoveries")} == {"none"}
    assert both == own
    assert "### Settings by budget" in report.read_text()
    record = profiles_of.load(directory).made["calibration"]
    assert "recovery=none" not in record["command"]
    assert "recovery=none" in record["none"]["command"]
    assert calibrate.main(command) == 0
    again = profiles_of.load(directory)
    assert {*again.manifest.params("amot")["recoveries"]} == {"none"}
    assert again.made["calibration"] == record


def test_numbers_written_never_sum_to_more_than_one() -> None:
    right = np.zeros((6, 3, 3), np.bool_)
    right[:, :, 2] = True
    right[:2, :, 1] = right[0, :, 0] = True  # one, one and four of six: not round
    found = Outcomes(FIRSTS, RATIOS, np.full((6, 3), 0.15, np.float32), right)
    slo = calibrate.parameters(found, 0.5)["slo"]
    assert json.loads(json.dumps(slo)) == slo
    (table,) = (each for each in slo["tables"] if each["r1"] == 0.25)
    assert [row[1] for row in table["p"]] == [0.1666, 0.1666, 0.6666]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has no budget of its own"),
        (["--budget", "0.5"], "give --data"),
        (["--budget", "0.5", "--set", "quality"], "give NAME=VALUE"),
    ],
)
def test_a_wrong_command_line_says_what_to_give(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main([str(tiny(tmp_path)), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_budget_below_every_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="add a smaller r1"):
        calibrate.parameters(drawn(20), 0.1)
