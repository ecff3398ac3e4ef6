"""DIMEC-DC and DIMEE on sentences, both ends without a wire: who answers, and that they agree."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import registry
from common.codec import decode, encode
from common.errors import ConfigError, Refused, Unavailable
from common.messages import Query, Result
from common.profile import Profile
from device.front import Text
from device.pools import EVERY, HEAVIEST, Kept, Pools
from device.strategy import Answer, Frame, Plan
from device.tiers import Tiers
from server.exits import Tiers as Server
from server.memory import NOTHING
from server.models.bert import Bert
from server.serving import Serving, strategies
from server.strategy import Outcome
from tests.sentences_stub import EDGE, MOBILE, MODEL, SENTENCES, bundle, tiny_text

NAMES = ("dimec", "dimee")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return tiny_text(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def serving(profile: Profile) -> Serving:
    return Serving(profile)


@pytest.fixture(scope="module")
def served(serving: Serving) -> dict[str, Any]:
    return strategies(serving)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def device(profile: Profile, name: str) -> Tiers:
    made: Tiers = registry.load("device.strategies", name).create(bundle(profile))
    return made


def sentence(text: str = SENTENCES[0]) -> Frame:
    return Frame(0, "0", text, 0.0)


def answer(server: Server, query: Query) -> Outcome:
    (outcome,) = server.forward([server.prepare(query, NOTHING)])
    return outcome


def converse(
    strategy: Tiers, server: Server | None, text: str = SENTENCES[0], **params: Any
) -> tuple[Answer, Query | None]:
    """The answer to `text`, and what was asked; no server: it is away."""
    talk = strategy.infer(sentence(text), Plan(strategy.name, params))
    query = None
    try:
        query = next(talk)
        if server is None:
            talk.throw(Unavailable("not connected"))
            raise AssertionError("asked again")
        row = answer(server, query).probabilities
        talk.send(Result("edge", {"probabilities": encode(row)}))
    except StopIteration as stop:
        return stop.value, query
    raise AssertionError("asked twice")


def by_torch(serving: Serving, strategy: Tiers, text: str) -> np.ndarray[Any, Any]:
    """Probabilities [exits, classes] of the whole model."""
    assert isinstance(strategy.front, Text)
    ids = torch.from_numpy(strategy.front.ids(text).astype(np.int64))[None]
    with torch.inference_mode():
        return torch.cat(serving.model("bert", Bert)(ids)).softmax(-1).numpy()


def prob(row: Answer) -> list[float]:
    return [value for _, value in sorted(row.top)]


@pytest.mark.parametrize("text", SENTENCES)
def test_each_tier_answers_as_its_layers_of_the_model_do(
    profile: Profile, serving: Serving, served: dict[str, Any], text: str
) -> None:
    strategy = device(profile, "dimec")
    whole = by_torch(serving, strategy, text)
    for route, layer in (("mobile", MOBILE), ("edge", EDGE), ("cloud", MODEL.depth)):
        got, query = converse(strategy, served["dimec"], text, route=route)
        np.testing.assert_allclose(prob(got), whole[layer - 1], atol=2e-3)
        assert (got.source, got.rounds) == (("device", 0) if route == "mobile" else ("edge", 1))
        assert (query is None) == (route == "mobile")
        assert got.degraded is None


def test_hidden_states_answer_as_the_sentence_does(
    profile: Profile, served: dict[str, Any], name: str
) -> None:
    strategy = device(profile, name)
    for route in ("edge", "cloud"):
        for text in SENTENCES:
            whole, asked = converse(strategy, served[name], text, route=route)
            hidden, sent = converse(strategy, served[name], text, route=route, send="hidden")
            np.testing.assert_allclose(prob(hidden), prob(whole), atol=5e-3)
            assert asked is not None
            assert sent is not None
            assert sent.tensors["hidden"].shape == (asked.tensors["ids"].shape[0], MODEL.dim)


def test_a_sentence_leaves_at_the_first_confident_exit(
    profile: Profile, serving: Serving, served: dict[str, Any]
) -> None:
    strategy, left = device(profile, "dimee"), set()
    for text in SENTENCES:
        whole = by_torch(serving, strategy, text)
        for alpha in (0.5, 0.8, 1.0):
            for route, first, last in (("mobile", 1, MOBILE), ("edge", MOBILE + 1, EDGE)):
                confident = [e for e in range(first, last) if whole[e - 1].max() >= alpha]
                expected = confident[0] if confident else last
                left.add(expected)
                got, _ = converse(strategy, served["dimee"], text, route=route, alpha=alpha)
                np.testing.assert_allclose(prob(got), whole[expected - 1], atol=2e-3)
    assert left == {1, MOBILE, EDGE}


def test_company_of_any_length_changes_no_answer(
    profile: Profile, served: dict[str, Any], name: str
) -> None:
    strategy = device(profile, name)
    for tier in ("edge", "cloud"):
        works = []
        for text in SENTENCES:
            query = next(strategy.infer(sentence(text), Plan(name, {"route": tier, "alpha": 0.7}
                                        if name == "dimee" else {"route": tier})))  # fmt: skip
            works.append(served[name].prepare(query, NOTHING))
        assert len({work.key for work in works}) == 1
        for work, together in zip(works, served[name].forward(works), strict=True):
            (alone,) = served[name].forward([work])
            np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=1e-5)


def test_the_nearest_mean_decides(profile: Profile, name: str) -> None:
    strategy = device(profile, name)
    for pool, tier in enumerate(("mobile", "edge", "cloud")):
        near = (strategy.started.means[pool] + 0.3).astype(np.float32)
        assert strategy.route(near, strategy.params) == tier


def test_an_easy_sentence_asks_nobody(profile: Profile, name: str) -> None:
    strategy = device(profile, name)
    seen = strategy.front(sentence()).embedding
    strategy.started.means[:] = np.stack([seen, seen + 1, seen + 2])
    got, asked = converse(strategy, None)
    assert (asked, got.source, got.degraded) == (None, "device", None)


def test_without_a_server_the_device_answers_and_says_so(profile: Profile, name: str) -> None:
    strategy = device(profile, name)
    here, _ = converse(strategy, None, route="mobile")
    got, asked = converse(strategy, None, route="cloud")
    assert asked is not None
    assert (got.label, got.source, got.rounds) == (here.label, "device", 0)
    assert got.degraded == "no answer of the cloud: not connected"


# What is wrong with a sentence.


def test_words_that_nobody_knows(profile: Profile, served: dict[str, Any], name: str) -> None:
    strategy = device(profile, name)
    with pytest.raises(Refused, match="none of its words is known"):
        next(strategy.infer(sentence("фильм хороший 映画"), Plan(name)))
    got, _ = converse(strategy, served[name], "фильм good 映画", route="cloud")
    assert got.label is not None
    assert got.degraded == "3 of 4 words are not in its vocabulary"


def test_words_in_pieces_are_words_that_it_does_not_know(
    profile: Profile, served: dict[str, Any], name: str
) -> None:
    strategy = device(profile, name)
    for text, doubt in (("good film", None), ("gab mid film", "2 of 3 words are not")):
        got, _ = converse(strategy, served[name], text, route="edge")
        assert (got.degraded or "")[: len(doubt or "")] == (doubt or "")
        assert (got.degraded is None) == (doubt is None)


def test_a_sentence_longer_than_the_model_reads(
    profile: Profile, served: dict[str, Any], name: str
) -> None:
    strategy = device(profile, name)
    for route in ("mobile", "cloud"):
        got, _ = converse(strategy, served[name], "good " * 3000, route=route)
        assert got.label is not None
        assert got.degraded == "only the first 10 of 3000 word pieces were read"


def test_what_people_type_is_read_as_the_treebank_writes(profile: Profile) -> None:
    front = device(profile, "dimec").front
    assert isinstance(front, Text)
    for typed, written in (("I don't like it", "i do n't like it"), ("Isn’t bad", "is n't bad")):
        assert list(front.ids(typed)) == list(front.ids(written))


# What a server refuses.


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2, 3], np.uint16),
        np.full(MODEL.positions + 1, 5, np.uint16),
        np.array([2, 60000, 3], np.uint16),
        np.array([2, 0, 3], np.uint16),
        np.array([2, 5, 3], np.int64),
        np.array([[2, 5, 3]], np.uint16),
    ],
)
def test_ids_that_are_none_are_refused(served: dict[str, Any], name: str, ids: Any) -> None:
    query = Query(name, "input", params={"tier": "edge"}, tensors={"ids": encode(ids)})
    with pytest.raises(Refused) as refused:
        served[name].prepare(query, NOTHING)
    assert refused.value.code == "bad"


@pytest.mark.parametrize(
    "hidden",
    [
        np.zeros((5, MODEL.dim + 1), np.float16),
        np.zeros((MODEL.positions + 1, MODEL.dim), np.float16),
        np.zeros((5, MODEL.dim), np.float32),
        np.full((5, MODEL.dim), np.nan, np.float16),
        np.zeros(5, np.float16),
    ],
)
def test_hidden_states_that_are_none_are_refused(
    served: dict[str, Any], name: str, hidden: Any
) -> None:
    query = Query(name, "hidden", params={"tier": "edge"}, tensors={"hidden": encode(hidden)})
    with pytest.raises(Refused, match="hidden"):
        served[name].prepare(query, NOTHING)


def test_a_tier_that_is_none_is_refused(
    profile: Profile, served: dict[str, Any], name: str
) -> None:
    query = next(device(profile, name).infer(sentence(), Plan(name, {"route": "cloud"})))
    for tier in ("mobile", 3, None):
        with pytest.raises(Refused, match="tier is"):
            served[name].prepare(replace(query, params={"tier": tier}), NOTHING)


# Pools that move.


def started() -> Pools:
    return Pools(np.array([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0]]), np.array([2, 2, 2]))


def test_a_mean_takes_a_sample_in_by_equation_five(tmp_path: Path) -> None:
    kept = Kept.of(tmp_path / "pools.npz", started())
    assert kept.take(np.array([3.0, 3.0], np.float32)) == 1
    np.testing.assert_allclose(kept.pools.means[1], [(2 * 4 + 3) / 3, 1.0])
    assert list(kept.pools.counts) == [2, 3, 2]
    np.testing.assert_allclose(kept.pools.means[[0, 2]], started().means[[0, 2]])


def test_an_empty_pool_is_nobodys() -> None:
    pools = started()
    pools.counts[0] = 0
    assert pools.nearest(np.array([0.1, 0.0], np.float32)) == 1


def test_adapted_pools_outlive_the_program(tmp_path: Path) -> None:
    path = tmp_path / "pools.npz"
    kept = Kept.of(path, started())
    kept.take(np.array([1.0, 1.0], np.float32))
    again = Kept.of(path, started())
    np.testing.assert_array_equal(again.pools.means, kept.pools.means)
    assert list(again.pools.counts) == [3, 2, 2]
    assert [each.name for each in tmp_path.iterdir()] == ["pools.npz"]


def test_what_came_since_the_last_write_is_written_when_nobody_needs_it_more(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pools.npz"
    kept = Kept.of(path, started())
    for _ in range(5):  # in much less than the second between two writes
        kept.take(np.array([1.0, 1.0], np.float32))
    assert list(Kept.of(path, started()).pools.counts) == [3, 2, 2]
    del kept
    gc.collect()
    assert list(Kept.of(path, started()).pools.counts) == [7, 2, 2]


def test_a_profile_s_own_pools_are_left_as_they_are(
    profile: Profile, served: dict[str, Any], name: str, tmp_path: Path
) -> None:
    held = bundle(profile)
    moved = replace(held, directory=tmp_path / "files")
    (tmp_path / "files").symlink_to(held.directory)
    strategy: Tiers = registry.load("device.strategies", name).create(moved)
    before = strategy.started.means.copy()
    converse(strategy, served[name], pools="adaptive")
    np.testing.assert_array_equal(strategy.started.means, before)
    (left,) = tmp_path.glob("*.npz")
    with np.load(left) as file:
        assert not np.array_equal(file["means"], before)
        assert file["counts"].sum() == strategy.started.counts.sum() + 1


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"PK\x03\x04 cut short"], ids=["empty", "junk", "cut"]
)
def test_a_broken_file_starts_again(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "pools.npz"
    path.write_bytes(data)
    kept = Kept.of(path, started())
    np.testing.assert_array_equal(kept.pools.means, started().means)
    kept.write()
    assert list(Kept.of(path, started()).pools.counts) == [2, 2, 2]


def test_pools_of_another_profile_start_again(tmp_path: Path) -> None:
    path = tmp_path / "pools.npz"
    Kept.of(path, Pools(np.ones((3, 5)), np.array([1, 1, 1]))).write()
    assert Kept.of(path, started()).pools.means.shape == (3, 2)


def test_counts_are_bounded_and_a_full_pool_still_moves(tmp_path: Path) -> None:
    pools = started()
    pools.counts[0] = HEAVIEST
    pools.add(np.array([1.0, 0.0], np.float32), 0)
    assert pools.counts[0] == HEAVIEST
    assert 0 < pools.means[0, 0] < 1e-5


def test_a_cache_that_cannot_be_written_keeps_nothing_and_harms_nothing(tmp_path: Path) -> None:
    kept = Kept.of(tmp_path / "no such folder" / "pools.npz", started())
    assert kept.take(np.array([0.0, 0.0], np.float32)) == 0
    assert EVERY > 0


def test_scores_need_a_profile_that_has_them(profile: Profile, name: str) -> None:
    with pytest.raises(ConfigError, match="no scores"):
        next(device(profile, name).infer(sentence(), Plan(name, {"route": "scores"})))


def test_the_bytes_on_the_wire_are_few(profile: Profile, name: str) -> None:
    query = next(device(profile, name).infer(sentence(), Plan(name, {"route": "edge"})))
    ids = decode(query.tensors["ids"])
    assert len(query.tensors["ids"].data) == 2 * len(ids) < len(SENTENCES[0])
