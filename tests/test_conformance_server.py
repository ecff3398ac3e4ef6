"""One suite for the server's half of every strategy in the folder.

The queries come from the device's half, so a new strategy is tested by being there (and by having
parameters in `tests.profiles`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import patches, registry
from common.codec import encode
from common.errors import Refused
from common.messages import Query, Result, Tensor
from common.profile import Profile, load
from device.bundle import Bundle
from device.strategy import Answer, Frame, Plan
from server.memory import NOTHING, Recalled
from server.serving import STRATEGIES, Serving, strategies
from server.strategy import Outcome, Strategy, Work
from tests.profiles import picture, tiny

NAMES = registry.names(STRATEGIES)


@dataclass
class Asked:
    """A query of the device's half, what it may recall, and what the server made of it."""

    query: Query
    recalled: Recalled
    work: Work
    outcome: Outcome


@dataclass
class Pair:
    """Both halves of a profile's strategies, without a wire."""

    profile: Profile
    served: dict[str, Strategy]
    bundle: Bundle
    conversations: dict[str, list[Asked]] = field(default_factory=dict)

    def converse(self, name: str, seed: int, **params: Any) -> tuple[list[Asked], Answer]:
        """The whole conversation about one frame."""
        server = self.served[name]
        device = registry.load("device.strategies", name).create(self.bundle)
        frame = Frame(seed, str(seed), picture(self.profile, seed), 0.0)
        talk = device.infer(frame, Plan(name, params))
        asked: list[Asked] = []
        left: dict[int, Any] = {}
        query = next(talk)
        while True:
            query = replace(query, id=len(asked) + 1)
            recalled = Recalled(query.memory, left.get(query.memory))
            work = server.prepare(query, recalled)
            (outcome,) = server.forward([work])
            asked.append(Asked(query, recalled, work, outcome))
            left[query.id] = outcome.remember
            result = Result(
                "edge", {"probabilities": encode(outcome.probabilities)}, outcome.wants, id=query.id
            )
            try:
                query = talk.send(result)
            except StopIteration as end:
                return asked, end.value


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    # A threshold out of reach, so that every strategy of two rounds has both.
    amot = {"r1": 0.25, "r2": 0.25, "threshold": 1.0, "codec": "mosaic", "quality": 75}
    profile = load(tiny(tmp_path_factory.mktemp("profile"), amot=amot))
    present = {file.path for file in profile.manifest.files}
    bundle = Bundle(profile.manifest, profile.directory, present)
    return Pair(profile, strategies(Serving(profile)), bundle)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def asked(pair: Pair, name: str) -> list[Asked]:
    if name not in pair.conversations:
        pair.conversations[name] = pair.converse(name, seed=1)[0]
    return pair.conversations[name]


def test_every_strategy_is_served(pair: Pair) -> None:
    assert set(pair.served) == set(NAMES)


def test_it_warms(pair: Pair, name: str) -> None:
    pair.served[name].warm()


def test_its_answers_are_probabilities(pair: Pair, asked: list[Asked]) -> None:
    for each in asked:
        row = each.outcome.probabilities
        assert row.dtype == np.float32
        assert row.shape == (len(pair.profile.manifest.classes),)
        assert row.min() >= 0
        assert row.sum() == pytest.approx(1.0, abs=1e-4)


def test_its_key_names_it(name: str, asked: list[Asked]) -> None:
    for each in asked:
        hash(each.work.key)
        assert each.work.key[0] == name


def test_what_it_wants_it_remembers(pair: Pair, asked: list[Asked]) -> None:
    for each in asked:
        outcome = each.outcome
        assert (outcome.wants is None) == (outcome.remember is None)
        if outcome.wants is not None:
            assert outcome.size > 0
            assert len(patches.unpack(outcome.wants, pair.profile.manifest.input.patches))
    assert asked[-1].outcome.wants is None


def test_company_changes_no_answer(pair: Pair, name: str) -> None:
    """Works of one key in one batch get what each gets alone, in order."""
    talks = [pair.converse(name, seed)[0] for seed in range(4)]
    for step in range(max(map(len, talks))):
        same: dict[Any, list[Asked]] = {}
        for talk in talks:
            if step < len(talk):
                same.setdefault(talk[step].work.key, []).append(talk[step])
        for group in same.values():
            together = pair.served[name].forward([each.work for each in group])
            assert len(together) == len(group)
            for each, outcome in zip(group, together, strict=True):
                np.testing.assert_allclose(
                    outcome.probabilities, each.outcome.probabilities, atol=1e-5
                )
                assert outcome.wants == each.outcome.wants


def test_the_same_query_gets_the_same_answer(pair: Pair, name: str, asked: list[Asked]) -> None:
    for each in asked:
        work = pair.served[name].prepare(each.query, each.recalled)
        (outcome,) = pair.served[name].forward([work])
        np.testing.assert_array_equal(outcome.probabilities, each.outcome.probabilities)


def spoiled(query: Query) -> Iterator[Query]:
    """`query`, wrong in every way that the wire lets through."""
    yield replace(query, step="no such step")
    yield replace(query, tensors={})
    for key, tensor in query.tensors.items():
        others = {k: v for k, v in query.tensors.items() if k != key}
        yield replace(query, tensors=others)
        shape = tensor.shape
        for wrong in (
            replace(tensor, dtype="float32"),
            replace(tensor, data=b""),
            replace(tensor, data=bytes(tensor.data)[:-1]),
            replace(tensor, codec="mosaic"),
            replace(tensor, codec="lz4"),
            replace(tensor, codec="zstd"),
            replace(tensor, shape=()),
            replace(tensor, shape=(*shape, 1)),
            replace(tensor, shape=(shape[0] + 1, *shape[1:])),
            replace(tensor, shape=(0, *shape[1:])),
            replace(tensor, shape=(10**6, *shape[1:])),
        ):
            if wrong != tensor:
                yield replace(query, tensors={**others, key: wrong})


def test_what_is_wrong_is_refused(pair: Pair, name: str, asked: list[Asked]) -> None:
    for each in asked:
        for query in spoiled(each.query):
            with pytest.raises(Refused) as refused:
                pair.served[name].prepare(query, each.recalled)
            assert refused.value.code in ("bad", "unknown")
            assert not refused.value.retryable


def test_a_round_whose_memory_is_gone_is_refused(pair: Pair, name: str, asked: list[Asked]) -> None:
    for each in asked[1:]:
        with pytest.raises(Refused, match="forgotten"):
            pair.served[name].prepare(each.query, NOTHING)


PARAMS = st.dictionaries(
    st.sampled_from(
        (
            "threshold",
            "r1",
            "r2",
            "quality",
            "x",
            "budget",
            "afford",
            "slo_objective",
            "recovery",
            "second",
        )
    ),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=3),
        st.binary(max_size=3),
        st.lists(st.integers(0, 3), max_size=3),
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_comes_is_served_or_refused(
    pair: Pair, name: str, asked: list[Asked], data: st.DataObject
) -> None:
    """Any parameters, any bytes flipped: a Refused or a work that runs, never anything else."""
    each = data.draw(st.sampled_from(asked))
    tensors = dict(each.query.tensors)
    key = data.draw(st.sampled_from(sorted(tensors)))
    raw = bytearray(tensors[key].data)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    tensors[key] = replace(tensors[key], data=bytes(raw))
    query = replace(each.query, params=data.draw(PARAMS), tensors=tensors)
    try:
        work = pair.served[name].prepare(query, each.recalled)
    except Refused as refused:
        event = refused.code
    else:
        (outcome,) = pair.served[name].forward([work])
        event = "served"
        assert np.isfinite(outcome.probabilities).all()
    assert event in ("served", "bad", "unknown")


def bitmap(*indices: int) -> Tensor:
    return encode(np.frombuffer(patches.pack(np.array(indices, np.intp), 16), np.uint8))


class TestAmot:
    """What only A-MOT does."""

    def rounds(self, pair: Pair, **params: Any) -> list[Asked]:
        return pair.converse("amot", 3, **params)[0]

    def test_the_threshold_decides_on_round_two(self, pair: Pair) -> None:
        confidence = float(self.rounds(pair)[0].outcome.probabilities.max())
        assert len(self.rounds(pair, threshold=confidence - 0.01)) == 1
        assert len(self.rounds(pair, threshold=min(1.0, confidence + 0.01))) == 2

    @pytest.mark.parametrize("r2", [0.0, 0.25, 0.5, 1.0])
    def test_it_asks_for_r2_of_the_patches_none_of_them_sent(self, pair: Pair, r2: float) -> None:
        first = self.rounds(pair, r2=r2)[0]
        sent = first.work.arrays["indices"]
        wanted = min(round(r2 * 16), 16 - len(sent))
        if not wanted:
            assert first.outcome.wants is None
            return
        assert first.outcome.wants is not None
        asked = patches.unpack(first.outcome.wants, 16)
        assert len(asked) == wanted
        assert not set(asked) & set(sent)

    def test_it_asks_for_those_that_attention_is_highest_on(self, pair: Pair) -> None:
        import torch

        first = self.rounds(pair)[0]
        assert first.outcome.wants is not None
        serving = Serving(pair.profile)
        work = first.work
        with torch.inference_mode():
            pixels = serving.recover([work.arrays["patches"]], [work.arrays["indices"]])
            _, attention = serving.classify(pixels)
        looked = attention[0]
        asked = set(patches.unpack(first.outcome.wants, 16))
        others = set(range(16)) - asked - set(work.arrays["indices"])
        assert min(looked[list(asked)]) >= max(looked[list(others)])

    def test_all_patches_in_two_rounds_answer_as_the_raw_frame_does(self, pair: Pair) -> None:
        last = self.rounds(pair, r2=1.0, codec="raw")[-1]
        (raw,), _ = pair.converse("raw", 3)
        assert last.work.key == ("amot", "supply", 16, "mae")
        np.testing.assert_allclose(last.outcome.probabilities, raw.outcome.probabilities, atol=1e-5)

    def test_more_patches_than_the_bitmap_says_are_refused(self, pair: Pair) -> None:
        rows = np.zeros((3, 768), np.uint8)
        for marks in (bitmap(), bitmap(1, 2), bitmap(1, 2, 3, 4)):
            query = Query("amot", "sample", tensors={"patches": encode(rows), "bitmap": marks})
            with pytest.raises(Refused, match="bad"):
                pair.served["amot"].prepare(query, NOTHING)

    def test_memory_holds_no_packet(self, pair: Pair) -> None:
        """A view would keep the whole receive buffer alive, out of the memory's account."""
        first = self.rounds(pair, codec="raw")[0].outcome
        assert first.remember.patches.base is None
        assert first.size == first.remember.patches.nbytes + 8 * (4 + 4)


FORMATS = ("jpeg", "webp")


class TestJpeg:
    """What only the JPEG strategy does."""

    def test_a_smaller_picture_is_resampled(self, pair: Pair) -> None:
        full, half = (pair.converse("jpeg", 2, quality=95, scale=s)[0][0] for s in (1.0, 0.5))
        assert half.query.tensors["frame"].shape == (32, 32, 3)
        near = np.abs(half.work.arrays["patches"].astype(int) - full.work.arrays["patches"])
        assert near.mean() < 12

    def test_webp_carries_the_same_picture_in_fewer_bytes(self, pair: Pair) -> None:
        jpeg, webp = (pair.converse("jpeg", 2, quality=60, format=f)[0][0] for f in FORMATS)
        assert webp.query.tensors["frame"].codec == "webp"
        sizes = [len(asked.query.tensors["frame"].data) for asked in (jpeg, webp)]
        assert sizes[1] < sizes[0]
        near = np.abs(webp.work.arrays["patches"].astype(int) - jpeg.work.arrays["patches"])
        assert near.mean() < 12

    @pytest.mark.parametrize("shape", [(20000, 8, 3), (8, 20000, 3), (0, 8, 3), (8, 0, 3)])
    def test_a_picture_far_too_large_or_empty_is_refused_before_it_is_decoded(
        self, pair: Pair, shape: tuple[int, ...]
    ) -> None:
        huge = Tensor(b"", "uint8", shape, "jpeg")
        with pytest.raises(Refused, match="at most 128x128"):
            pair.served["jpeg"].prepare(Query("jpeg", "whole", tensors={"frame": huge}), NOTHING)

    def test_the_codecs_do_not_cross(self, pair: Pair) -> None:
        frame = picture(pair.profile)
        for strategy, codec in (("raw", "jpeg"), ("raw", "webp"), ("jpeg", "lz4")):
            query = Query(strategy, "whole", tensors={"frame": encode(frame, codec)})
            with pytest.raises(Refused, match="strategy"):
                pair.served[strategy].prepare(query, NOTHING)
