"""A-MOT's two halves on a tiny profile: budgets, recovery or none, the light second round."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import patches
from common.errors import ConfigError, Refused, Unavailable
from common.messages import Query, Result
from common.profile import load
from device.bundle import Bundle
from device.strategies.amot import create as create_device
from device.strategy import Frame, Plan
from profiles.amend import amend
from server.budget import Bucket
from server.memory import NOTHING, Recalled
from server.models.checkpoint import save_weights
from server.models.light import LightInference, begin, for_classifier
from server.serving import Serving
from server.strategies.amot import Amot, FirstRound
from tests.profiles import picture, tiny
from tests.test_conformance_server import Asked, Pair
from tests.test_pipeline import Bench, FakeLink, answered

SLO: dict[str, Any] = {
    "ratios": [0.0, 0.125, 0.25, 0.5],
    "edges": [0.0, 0.5, 1.0],
    "tables": [
        {
            "r1": 0.25,
            "counts": [60, 40],
            "p": [[0.2, 0.6], [0.2, 0.2], [0.2, 0.0], [0.2, 0.0]],
        }
    ],
    "bytes": {"mosaic": [60.0, 70.0], "raw": [768, 768]},
}
AMOT = {"r1": 0.25, "r2": 0.25, "threshold": 1.0, "codec": "mosaic", "quality": 75}


def served(root: Path, bucket: Bucket | None = None, light: bool = False, **params: Any) -> Pair:
    """Both halves of A-MOT on the tiny profile with `params`."""
    directory = tiny(root, amot={**AMOT, **params})
    if light:
        serving = Serving(load(directory))
        torch.manual_seed(1)
        config = for_classifier(serving.classifier.config, layers=1)  # of its two
        weights = root / "light.safetensors"
        save_weights(LightInference(config), weights)
        amend(directory, models={"light": (weights, asdict(config))})
    profile = load(directory)
    serving = Serving(profile)
    serving.bucket = bucket
    return Pair(profile, {"amot": Amot(serving)}, Bundle(profile.manifest, profile.directory))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return served(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def edge(plain: Pair) -> float:
    """The median confidence of the twelve frames that the tests ask about."""
    return float(np.median([rounds(plain, s)[0].outcome.probabilities.max() for s in range(12)]))


@pytest.fixture
def adaptive(tmp_path: Path, edge: float) -> Pair:
    return served(tmp_path, slo={**SLO, "edges": [0.0, edge, 1.0]})


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return served(tmp_path_factory.mktemp("light"), light=True, second="light")


def rounds(pair: Pair, seed: int = 3, **params: Any) -> list[Asked]:
    return pair.converse("amot", seed, **params)[0]


def extra(asked: list[Asked]) -> int:
    """Patches that the server asked for."""
    wants = asked[0].outcome.wants
    return 0 if wants is None else len(patches.unpack(wants, 16))


def refusal(pair: Pair, asked: Asked, **params: Any) -> str:
    query = replace(asked.query, params={**asked.query.params, **params})
    with pytest.raises(Refused) as refused:
        pair.served["amot"].prepare(query, NOTHING)
    assert refused.value.code == "bad"
    return refused.value.reason


# Recovery or none.


def test_without_recovery_the_sent_patches_alone_are_classified(plain: Pair) -> None:
    serving = Serving(plain.profile)
    for codec in ("mosaic", "raw"):
        for asked in rounds(plain, recovery="none", codec=codec):
            arrays = asked.work.arrays
            pixels = serving.pixels([arrays["patches"]])
            with torch.inference_mode():
                output = serving.classifier(pixels, torch.from_numpy(arrays["indices"])[None])
            right = output.logits.softmax(-1)[0].numpy()
            np.testing.assert_allclose(asked.outcome.probabilities, right, atol=1e-5)


def test_without_recovery_all_patches_answer_as_with_it(plain: Pair) -> None:
    with_, without = (rounds(plain, r1=1.0, recovery=r)[0].outcome for r in ("mae", "none"))
    np.testing.assert_allclose(with_.probabilities, without.probabilities, atol=1e-5)


def test_works_with_and_without_recovery_share_no_batch(plain: Pair) -> None:
    keys = [[a.work.key for a in rounds(plain, recovery=r)] for r in ("mae", "none")]
    assert not set(keys[0]) & set(keys[1])


def test_without_recovery_it_asks_near_what_is_looked_at(
    plain: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All attention on one patch in a corner: its neighbours are asked for, by distance."""
    vit = plain.served["amot"]._serving.classifier  # type: ignore[attr-defined]
    features = vit.forward_features

    def corner(tokens: torch.Tensor, done: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen, attention = features(tokens, done)
        attention = torch.zeros_like(attention)
        attention[:, 0] = 1.0
        return seen, attention

    monkeypatch.setattr(vit, "forward_features", corner)
    asked = rounds(plain, recovery="none", r1=0.25, r2=0.2)[0]
    sent = asked.work.arrays["indices"]
    row, column = divmod(np.arange(16), 4)
    near = np.exp(-((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) / 4.5)
    looked = near[sent[0]] / near[sent].sum(axis=0)
    looked[sent] = -1
    assert asked.outcome.wants is not None
    wanted = patches.unpack(asked.outcome.wants, 16)
    assert set(wanted) == set(np.argsort(-looked, kind="stable")[:3])


# The SLO-adaptive second round.


def test_without_calibration_every_frame_gets_r2(plain: Pair) -> None:
    assert {extra(rounds(plain, seed)) for seed in range(5)} == {4}
    assert "here it can be fixed" in refusal(plain, rounds(plain)[0], slo_objective="weighted")


def test_the_server_solves_for_the_frames_it_has(adaptive: Pair, edge: float) -> None:
    """Enough for all: each interval gets the least ratio after which none is made right."""
    talks = [rounds(adaptive, seed, budget=1.0) for seed in range(12)]
    for asked in talks:
        sure = asked[0].outcome.probabilities.max()
        assert extra(asked) == (8 if sure < edge else 2)
    assert {extra(asked) for asked in talks} == {8, 2}


@pytest.mark.parametrize("share", [0.3, 0.375, 0.5])
def test_the_mean_share_stays_within_the_budget(adaptive: Pair, share: float) -> None:
    sent = [4 + extra(rounds(adaptive, seed % 12, budget=share)) for seed in range(60)]
    assert sum(sent) <= share * 16 * 60 + 16
    assert sum(sent) >= 0.75 * share * 16 * 60


def test_the_profiles_r2_is_the_mean_where_no_budget_is_given(adaptive: Pair) -> None:
    sent = [extra(rounds(adaptive, seed % 12, r2=0.125)) for seed in range(60)]
    assert 60 < sum(sent) <= 0.125 * 16 * 60 + 16


def test_a_budget_of_bytes(adaptive: Pair) -> None:
    """Both rounds' packets, settled by what came: head and tensors."""
    spent = 0
    for seed in range(40):
        for asked in rounds(adaptive, seed % 12, budget=5000.0, codec="raw"):
            spent += 100 + sum(len(t.data) for t in asked.query.tensors.values())
    assert 0.8 * 5000 * 40 <= spent <= 5000 * 40 + 16 * 768


def test_round_one_itself_stays_within_the_budget(adaptive: Pair) -> None:
    def sent(**params: Any) -> int:
        return len(rounds(adaptive, **params)[0].work.arrays["indices"])

    assert sent(r1=0.5, budget=0.3) == 4
    assert sent(r1=0.5, budget=0.01) == 1
    assert sent(r1=0.5, budget=100 + 60 * 3.5) == 3
    assert sent(r1=0.5, budget=100 + 768 * 2.5, codec="raw") == 2
    assert sent(r1=0.5, budget=0.0) == 8


def test_the_ablations_are_reached_by_parameters(adaptive: Pair) -> None:
    """MOT: the same r2 for all. A-MOT-O: one round."""
    for seed in range(6):
        assert extra(rounds(adaptive, seed, slo_objective="fixed")) == 4
        assert len(rounds(adaptive, seed, threshold=0.0)) == 1


def test_the_objectives_differ(tmp_path: Path, edge: float) -> None:
    """Weighted, the many hard frames are served; as printed, the few that gain a little more."""
    slo = {
        **SLO,
        "edges": [0.0, edge, 1.0],
        "tables": [
            {
                "r1": 0.25,
                "counts": [255, 1],
                "p": [[0.2, 0.3], [0.4, 0.0], [0.0, 0.0], [0.0, 0.5]],
            }
        ],
    }
    pair = served(tmp_path, slo=slo)
    asked = next(a for a in (rounds(pair, s) for s in range(20)) if
                 a[0].outcome.probabilities.max() > edge)  # fmt: skip
    query = asked[0].query

    def wants(objective: str) -> int:
        params = {**query.params, "slo_objective": objective, "budget": (4 + 2) / 16}
        amot = Amot(Serving(pair.profile))
        work = amot.prepare(replace(query, params=params), NOTHING)
        wanted = amot.forward([work])[0].wants
        return 0 if wanted is None else len(patches.unpack(wanted, 16))

    assert wants("weighted") == 0
    assert wants("printed") == 8


def test_each_recovery_has_its_own_table(tmp_path: Path) -> None:
    """Nothing helps where patches go alone; where the rest is recovered, eight more always do."""
    never = {**SLO, "tables": [{"r1": 0.25, "counts": [9, 9], "p": [[0.0, 0.0]] * 4}]}
    always = {
        **SLO,
        "tables": [{"r1": 0.25, "counts": [9, 9], "p": [[0.0, 0.0]] * 3 + [[1.0] * 2]}],
    }
    recoveries = {"mae": {"slo": always}}
    pair = served(tmp_path, slo=never, recovery="none", recoveries=recoveries)
    assert len(rounds(pair, budget=1.0, threshold=1.0)) == 1
    assert extra(rounds(pair, budget=1.0, threshold=1.0, recovery="mae")) == 8


def test_a_shared_bucket_bounds_what_is_asked_for(tmp_path: Path) -> None:
    bucket = Bucket(1.0, lambda: 0, now=0.0)  # a byte per second: nothing is ever left
    pair = served(tmp_path, bucket, slo=SLO)
    assert len(rounds(pair, budget=1.0)) == 1
    assert len(rounds(pair, slo_objective="fixed")) == 1
    pair.served["amot"].warm()


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"budget": -0.1}, "budget is -0.1"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": "40%"}, "budget is '40%'"),
        ({"budget": 1e12}, "from 0 to 1e"),
        ({"afford": -1}, "afford is -1"),
        ({"afford": float("nan")}, "afford"),
        ({"slo_objective": "best"}, "can be weighted or printed or fixed"),
        ({"slo_objective": ["fixed"]}, "slo_objective"),
        ({"recovery": "some"}, "can be mae or none"),
        ({"second": "light"}, "can be full"),
    ],
)
def test_what_is_wrong_is_refused(adaptive: Pair, params: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(adaptive, rounds(adaptive)[0], **params)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"slo": {}}, "slo.ratios"),
        ({"slo_objective": "printed"}, "slo_objective is 'printed'.*allows fixed"),
        ({"second": "light"}, "second is 'light'.*allows full"),
        ({"recovery": "some"}, "mae or none"),
        ({"budget": -1}, "budget is -1"),
        ({"threshold": 2}, "threshold is 2"),
    ],
)
def test_a_profile_that_does_not_fit_is_named(
    tmp_path: Path, params: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        served(tmp_path, **params)


# The light second round.


def test_a_light_second_round_infers_from_the_new_patches_and_the_first_tokens(
    light: Pair,
) -> None:
    serving = Serving(light.profile)
    first, second = rounds(light)
    wanted = patches.unpack(first.outcome.wants or b"", 16)
    assert second.work.key == ("amot", "supply", 4, "light", 17)
    np.testing.assert_array_equal(second.work.arrays["indices"], wanted)
    model = serving.model("light", LightInference)
    with torch.inference_mode():
        arrays = first.work.arrays
        pixels = serving.recover([arrays["patches"]], [arrays["indices"]])
        tokens = begin(serving.classifier, serving.classifier.embed(pixels), model.config.after)
        new = serving.pixels([second.work.arrays["patches"]])
        logits = model(serving.classifier, new, torch.from_numpy(wanted)[None], tokens)
    right = logits.softmax(-1)[0].numpy()
    np.testing.assert_allclose(second.outcome.probabilities, right, atol=1e-5)


def test_memory_holds_the_tokens_in_place_of_the_patches(light: Pair) -> None:
    outcome = rounds(light)[0].outcome
    left = outcome.remember
    assert isinstance(left, FirstRound)
    assert left.patches is None
    assert left.tokens is not None
    assert left.tokens.shape == (17, 16)
    assert left.tokens.untyped_storage().nbytes() == left.tokens.nbytes  # not the whole batch's
    assert outcome.size == left.tokens.nbytes + 8 * (4 + 4)


def test_the_second_round_can_be_a_full_one(light: Pair, plain: Pair) -> None:
    lightly, fully, plainly = rounds(light), rounds(light, second="full"), rounds(plain)
    assert fully[1].work.key == ("amot", "supply", 8, "mae")
    same = fully[1].outcome.probabilities
    np.testing.assert_allclose(same, plainly[1].outcome.probabilities, atol=1e-5)
    assert not np.allclose(same, lightly[1].outcome.probabilities, atol=1e-3)
    assert fully[0].outcome.wants == lightly[0].outcome.wants


def test_company_changes_no_light_answer(light: Pair) -> None:
    talks = [rounds(light, seed, second=s) for seed in range(3) for s in ("light", "full")]
    firsts = light.served["amot"].forward([talk[0].work for talk in talks])
    for talk, outcome in zip(talks, firsts, strict=True):
        np.testing.assert_allclose(outcome.probabilities, talk[0].outcome.probabilities, atol=1e-5)
        assert outcome.wants == talk[0].outcome.wants
    works = [talk[1].work for talk in talks[::2]]
    for talk, outcome in zip(talks[::2], light.served["amot"].forward(works), strict=True):
        np.testing.assert_allclose(outcome.probabilities, talk[1].outcome.probabilities, atol=1e-5)


def test_a_light_second_round_without_recovery_has_the_tokens_of_what_was_sent(
    light: Pair,
) -> None:
    serving = Serving(light.profile)
    first, second = rounds(light, recovery="none")
    assert second.work.key == ("amot", "supply", 4, "light", 5)
    model, vit = serving.model("light", LightInference), serving.classifier
    with torch.inference_mode():
        sent, asked = (
            (serving.pixels([a.work.arrays["patches"]]),
             torch.from_numpy(a.work.arrays["indices"])[None])
            for a in (first, second)
        )  # fmt: skip
        tokens = begin(vit, vit.embed(*sent), model.config.after)
        right = model(vit, *asked, tokens).softmax(-1)[0].numpy()
    np.testing.assert_allclose(second.outcome.probabilities, right, atol=1e-5)
    recovered = rounds(light)[1]
    assert not np.allclose(recovered.outcome.probabilities, right, atol=1e-3)
    full = rounds(light, recovery="none", second="full")[1]
    assert full.work.key == ("amot", "supply", 8, "none")


@pytest.mark.parametrize("recovery", ["mae", "none"])
def test_it_warms_light(tmp_path: Path, recovery: str) -> None:
    served(tmp_path, light=True, second="light", recovery=recovery).served["amot"].warm()


def test_a_light_inference_that_leaves_no_layer_is_refused(tmp_path: Path) -> None:
    directory = served(tmp_path, light=True).profile.directory
    text = (directory / "profile.json").read_text()
    (directory / "profile.json").write_text(text.replace('"after": 1', '"after": 2'))
    with pytest.raises(ConfigError, match=r"behind layer 2.*classifier's 2.*train it again"):
        Amot(Serving(load(directory)))


def test_a_light_round_whose_memory_is_gone_is_refused(light: Pair) -> None:
    second = rounds(light)[1]
    with pytest.raises(Refused, match="forgotten"):
        light.served["amot"].prepare(second.query, NOTHING)
    short = replace(second.query, tensors={})
    with pytest.raises(Refused, match="bad"):
        light.served["amot"].prepare(short, Recalled(short.memory, second.work.remembered))


# What the device says.


async def never(query: Query) -> Result:
    raise Unavailable("gone")


@pytest.mark.parametrize("deadline", [None, 500.0])
def test_the_pipeline_tells_what_the_link_can_carry(tmp_path: Path, deadline: float | None) -> None:
    link = FakeLink(never)
    with ThreadPoolExecutor(1) as worker:
        pipeline = Bench(tmp_path, worker).pipeline(link, "amot", deadline=deadline, patience=0.0)
        answered(pipeline)
        assert "afford" not in link.asked[0].params  # nothing is known of the link
        pipeline.link.record(time.monotonic(), 50_000, 0.51, rtt=0.01)
        answered(pipeline)
    params = link.asked[-1].params
    if deadline is None:
        assert "afford" not in params
    else:
        # At most 0.475 s less two round trips of 10 ms, at 100 kB/s.
        assert isinstance(params["afford"], int)
        assert 0 < params["afford"] <= 45_500


def sample(pair: Pair, carry: float | None = None, **params: Any) -> Query:
    talk = create_device(pair.bundle).infer(
        Frame(1, "1", picture(pair.profile, 1), 0.0), Plan("amot", params, carry=carry)
    )
    return next(talk)


def test_the_device_sends_only_what_the_plan_sets(adaptive: Pair) -> None:
    assert sample(adaptive).params == {"threshold": 1.0, "r2": 0.25}
    given: dict[str, Any] = {
        "budget": 0.4,
        "slo_objective": "printed",
        "recovery": "none",
        "second": "full",
    }
    assert sample(adaptive, **given).params == {"threshold": 1.0, "r2": 0.25, **given}


def test_the_device_says_what_it_can_afford(adaptive: Pair) -> None:
    query = sample(adaptive, carry=20_000.0, codec="raw")
    assert query.params["afford"] == 20_000 - 100 - 4 * 768 - 2
    assert sample(adaptive, carry=50.0).params["afford"] == 0


def test_what_the_device_cannot_afford_is_not_asked_for(adaptive: Pair) -> None:
    query = sample(adaptive, budget=1.0, codec="raw", carry=100 + 4 * 768 + 2 + 100 + 768 + 5)
    amot = adaptive.served["amot"]
    wants = amot.forward([amot.prepare(query, NOTHING)])[0].wants
    assert wants is not None
    assert len(patches.unpack(wants, 16)) == 1
