"""The tables of the tiers' bench: each row is what its rule does, and nothing is made better."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import tiers, tiertables
from bench.page import fill
from bench.tiertables import Row, Study
from common.errors import OffboardError
from profiles import fitted, scores
from profiles.fitted import Held
from profiles.pools import Costs, Layers, Split

LAYERS = Layers(1, 2, 4)
COSTS = Costs()
METHODS = (
    *("whole model on the mobile", "Random", "DeeBERT, Early-Exit", "AdaEE", "I-SplitEE"),
    *("Ours-F", "Ours-D", "scores", "oracle of confidences", "oracle: cheapest that is right"),
)


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """No scores worth having are learned here, but quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "STEPS", 3)
        yield


def split(count: int, seed: int) -> Split:
    """Samples whose first number tells how hard they are: which exits are right, and how sure."""
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(count, 3)).astype(np.float32)
    hard = 1 / (1 + np.exp(-3 * embeddings[:, 0]))
    labels = random.integers(0, 2, count)
    depth = np.arange(1, 5)[:, None]
    sure = np.clip(0.99 - 0.6 * hard * (4 - depth) / 3, 0.02, 0.98)
    probabilities = np.empty((4, count, 2), np.float32)
    np.put_along_axis(probabilities, labels[None, :, None], sure[..., None], 2)
    np.put_along_axis(probabilities, 1 - labels[None, :, None], 1 - sure[..., None], 2)
    return Split(probabilities, labels, embeddings)


@pytest.fixture(scope="module", params=[fitted.DC, fitted.EE])
def study(request: pytest.FixtureRequest) -> Study:
    known = split(200, 0)
    random = np.random.default_rng(2)
    truth = np.clip(known.truth[0] + random.normal(0, 0.05, (5, 200)), 0, 1).astype(np.float32)
    held = Held(known, truth.mean(0), truth.std(0), np.arange(200))
    return Study(request.param, held, fitted.fit(request.param, held, LAYERS, COSTS), split(150, 1))


def test_the_main_table_has_every_method(study: Study) -> None:
    rows = {row.name: row for row in tiertables.methods(study)}
    assert tuple(rows) == METHODS
    whole = rows["whole model on the mobile"]
    assert (whole.accuracy, whole.cost) == (float(study.test.right[-1].mean()), 0.0)
    assert rows["Random"].shares == (1 / 3, 1 / 3, 1 / 3)
    best = rows["oracle: cheapest that is right"]
    for name in ("Random", "Ours-F", "Ours-D", "scores"):
        assert rows[name].accuracy <= best.accuracy
        assert rows[name].shares is not None
        assert sum(rows[name].shares or ()) == pytest.approx(1)
    shown = tiertables.main_table(rows.values())
    assert shown.splitlines()[2].startswith("| whole model on the mobile | ")
    assert len(shown.splitlines()) == 2 + len(METHODS)


def test_the_oracle_earns_most(study: Study) -> None:
    def earned(sent: Any) -> float:
        served = study.made.serve(study.test, sent)
        sure = study.test.confidence[served.exit - 1, np.arange(len(study.test))]
        return float((sure - COSTS.unit * served.cost).mean())

    best = earned(study.oracle(study.test))
    for how in fitted.ROUTES:
        assert earned(study.made.route(study.test.embeddings, how)) <= best + 1e-9
    for tier in range(3):
        assert earned(np.full(len(study.test), tier)) <= best + 1e-9


def test_each_tier_alone(study: Study) -> None:
    mobile, edge, cloud = tiertables.alone(study)
    assert [row.shares for row in (mobile, edge, cloud)] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert cloud.accuracy == float(study.test.right[-1].mean())
    assert cloud.cost == pytest.approx(15 / 6 - 1)
    if study.name == fitted.DC:
        assert mobile.cost == pytest.approx(1.5 / 6 - 1)
        assert edge.cost == pytest.approx(4.5 / 6 - 1)
        assert edge.accuracy == float(study.test.right[1].mean())


def test_routing_stands_beside_chance(study: Study) -> None:
    rows = list(tiertables.routing(study))
    assert [name for name, _, _ in rows] == [
        *("chance", "Ours-F", "Ours-D", "scores", "oracle of confidences"),
    ]
    chance = rows[0]
    shares = np.bincount(study.made.pools, minlength=3) / len(study.made.pools)
    assert chance[1] == pytest.approx(shares.max())
    assert chance[2] == pytest.approx(1 / np.count_nonzero(shares))
    assert "| chance |" in tiertables.routing_table(study)


def test_a_dearer_cost_is_fitted_anew(study: Study) -> None:
    found = list(tiertables.variations(study, (1.0, 3.0)))
    assert len(found) == len(tiertables.VARIED) * 2 * 3
    plain = {row.name: row for row in tiertables.methods(study)}
    for _, factor, rule, row in found:
        if factor == 1.0:
            assert (row.accuracy, row.cost) == (plain[rule].accuracy, plain[rule].cost)
    shown = tiertables.variation_table(found).splitlines()
    assert shown[0] == "| cost | rule | x 1 | x 3 |"
    assert len(shown) == 2 + len(tiertables.VARIED) * 3
    assert tiertables.chosen(study).startswith("m 1, n 2, l 4; alpha ")


def test_the_pools_are_drawn(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "pools.svg"
    tiertables.draw_pools(study, path)
    assert path.read_text().startswith("<?xml")


def test_a_row_s_change_is_in_points() -> None:
    first, second = Row("a", 0.9, 0.0), Row("b", 0.885, -0.43, (0.5, 0.25, 0.25))
    assert tiertables.main_table([first, second]).splitlines()[2:] == [
        "| a | 90.0% | +0.0 | +0% |  |",
        "| b | 88.5% | -1.5 | -43% | 50% / 25% / 25% |",
    ]


def test_a_section_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "tiers.md"
    page.write_text("before\n<!-- sst2 links -->\nold\n<!-- /sst2 links -->\nafter\n")
    fill(page, {"sst2 links": "new"})
    assert page.read_text() == (
        "before\n<!-- sst2 links -->\n\nnew\n\n<!-- /sst2 links -->\nafter\n"
    )
    with pytest.raises(OffboardError, match="has no lines <!-- sst2 tables -->"):
        fill(page, {"sst2 tables": "new"})


def test_what_is_asked_wrongly_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiers.main(["--profile", "signs", "--data", "x"]) == 2
    assert "offers neither dimec nor dimee" in capsys.readouterr().err
    for flags in (["--links", "wire"], ["--count", "0"]):
        with pytest.raises(SystemExit):
            tiers.main(["--data", "x", *flags])
