"""The bench of Janus: its worlds, its rows, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import janus, janus_page, janus_pair, scenarios
from bench.page import fill
from bench.scenarios import BASELINES, CLIP, IMAGE, ORACLE, OURS, PAPER, World
from bench.traces import Trace
from common.merging import fixed, remaining, schedule
from device.machine import Machine
from device.scheduler import Scheduler

TOKENS = (1, 150, 300, 450, 577, 1569)
MACHINES = {
    name: {
        "device": Machine(TOKENS, tuple(0.25 * n + 2 for n in TOKENS), (0.1,) * 6, 30.0, 1.0),
        "server": Machine(TOKENS, tuple(0.4 * n + 1 for n in TOKENS), (0.1,) * 6, 20.0, 1.0),
    }
    for name in ("vit_l_384", "vit_l_clip", "vit_b_224")
}


@pytest.fixture(scope="module")
def world() -> World:
    return scenarios.worlds(MACHINES)[0]


def test_the_machines_take_what_the_papers_take(world: World) -> None:
    assert scenarios.whole(world.device, IMAGE.shape) == pytest.approx(653.3)
    assert scenarios.whole(world.server, IMAGE.shape) == pytest.approx(32.3)
    image, clip = scenarios.worlds(MACHINES, ("image", "clip"))
    assert clip.slowed == image.slowed
    assert scenarios.whole(clip.device, CLIP.shape) > 653.3


def test_accuracy_goes_through_both_published_figures() -> None:
    tokens = remaining(fixed(23, 24, 577), 577)
    assert IMAGE.accuracy(0.0) == 86.92
    assert IMAGE.accuracy(1 - float(np.mean(tokens[:-1])) / 577) == pytest.approx(86.14)


def test_baselines_merge_toms_r_and_ours_every_alpha(world: World) -> None:
    base = world.baseline(world.frame(0.87))
    assert base.alphas == (0.0,)
    tokens = remaining(fixed(23, 24, 577), 577)
    assert base.loss[0, -1, 0] == pytest.approx(1 - np.mean(tokens[:-1]) / 577)
    ours = world.ours()
    assert ours.alphas[0] == 0.0
    assert schedule(ours.alphas[-1], 24, 577)
    assert world.published().splits == (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 19, 22, 25)


@pytest.mark.parametrize(
    ("name", "group", "rtt"),
    [("5g-static-away_p1-run01", "5g-static", 17.05), ("mahimahi-ATT", "mahimahi", 42.2)],
)
def test_a_traces_name_tells_scenario_and_link(name: str, group: str, rtt: float) -> None:
    assert scenarios.scenario(name) == group
    assert scenarios.setting(IMAGE, name).rtt == rtt


def test_a_row_is_of_all_its_frames(world: World) -> None:
    made = scenarios.policies(world)
    slow = Trace.constant(0.4)
    trace = Trace(slow.times, slow.mbps, 5.0)
    runs = [scenarios.replayed(world, made[BASELINES[0]], "lte-x", trace)] * 2
    row = scenarios.row(world, BASELINES[0], "lte", runs)
    latency = runs[0][0].latency
    assert row["n"] == 2 * len(runs[0])
    assert row["violations"] == float(latency > 300)
    assert row["throughput"] == pytest.approx(1e3 / latency)
    assert row["deviation"] == pytest.approx(abs(latency - 300) / 300)
    assert (row["accuracy"], row["alone"]) == (pytest.approx(86.14), 1.0)


def test_the_bench_replays_writes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two short traces; a second run replays none of it again."""
    monkeypatch.setattr(janus, "SWEEP", (1.0, 50.0))
    traces = tmp_path / "traces"
    traces.mkdir()
    for name, mbps in (("lte-driving-run08", (30, 0.5, 0.1, 20)), ("5g-static-a", (90, 80, 95))):
        lines = [f"{i / 2},{rate}" for i, rate in enumerate(mbps * 3)]
        (traces / f"{name}.csv").write_text("t_s,uplink_mbps\n" + "\n".join(lines) + "\n")
    known = {
        name: {side: machine.written() for side, machine in sides.items()}
        for name, sides in MACHINES.items()
    }
    (tmp_path / "machines.json").write_text(json.dumps(known))
    docs = tmp_path / "docs"
    docs.mkdir()
    names = ("machines", "figure7", "gains", "oracles", "table2")
    page = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names)
    (docs / janus_page.PAGE).write_text(page)
    command = [
        *("--traces", str(traces), "--machines", str(tmp_path / "machines.json")),
        *("--json", str(tmp_path / "rows.json"), "--resume", "--docs", str(docs)),
    ]
    assert janus.main(command) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    at = {(row["scenario"], row["method"]): row for row in rows}
    methods = set(scenarios.policies(scenarios.worlds(MACHINES)[0]))
    assert set(at) == {(g, m) for g in ("lte-driving", "5g-static") for m in methods}
    for group in ("lte-driving", "5g-static"):
        assert at[group, ORACLE]["violations"] <= at[group, OURS]["violations"]
        assert at[group, OURS]["throughput"] > at[group, BASELINES[0]]["throughput"]
    text = (docs / janus_page.PAGE).read_text()
    assert f"| image | lte-driving | {PAPER} |" in text
    assert {path.name for path in docs.glob("*.svg")} == {
        "janus-image.svg", "janus-series.svg", "janus-sweep.svg"
    }  # fmt: skip
    capsys.readouterr()
    monkeypatch.setattr(scenarios, "replayed", lambda *_: pytest.fail("replayed again"))
    assert janus.main(command[:-2]) == 0
    assert "| image | lte-driving |" in capsys.readouterr().out


def test_the_decision_is_timed_beside_the_papers(world: World) -> None:
    rows = janus.table2(world)
    assert [row["method"] for row in rows[:2]] == ["Algorithm 1", "ours"]
    for row in rows:
        parts = row["system"] + row["device"] + row["link"] + row["server"]
        assert parts == pytest.approx(1.0)
    assert not Scheduler(world.ours()).decide(12.5, 100.0, 42.2).meets


def test_bad_commands_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert janus.main(["--traces", str(tmp_path)]) == 2
    assert "no .csv trace" in capsys.readouterr().err
    (tmp_path / "a.csv").write_text("t_s,uplink_mbps\n0,1\n1,2\n")
    assert janus.main(["--traces", str(tmp_path), "--pair", "imagenette"]) == 2
    assert "needs --data" in capsys.readouterr().err
    (tmp_path / janus_page.PAGE).write_text("nothing")
    with pytest.raises(janus.OffboardError, match="has no lines"):
        fill(tmp_path / janus_page.PAGE, {"pair": "x"})


def test_the_pairs_baselines_merge_as_large_a_part_as_tome() -> None:
    for layers, tokens, r in ((12, 197, 13), (6, 197, 26), (6, 129, 17)):
        every = janus_pair.methods(layers, tokens)
        for name in (*BASELINES, scenarios.CLOUD_JPEG):
            assert (every[name]["schedule"], every[name]["r"]) == ("fixed", r)
        assert every[BASELINES[0]]["split"] == layers + 1
        assert every[BASELINES[2]]["split"] == "fastest"
        assert every[OURS] == {"split": "auto"}


def test_what_the_pair_predicted_is_told_where_it_did() -> None:
    answers = [
        {"predicted_ms": 90.0, "latency_ms": 100.0, "chosen": {"split": 0}, "degraded": None},
        {"predicted_ms": 50.0, "latency_ms": 100.0, "chosen": {"split": 7}, "degraded": "late"},
    ]
    told = janus_pair.predicted(answers)
    assert told["predicted_p50"] == pytest.approx(0.3)
    assert told["splits"] == {"0": 1, "7": 1}
    assert told["finished_alone"] == 1
    assert janus_pair.predicted([{"predicted_ms": None}])["splits"] is None
