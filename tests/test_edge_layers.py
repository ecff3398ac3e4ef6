"""A text model at an edge: n layers are held, and what is for all of them is passed on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common import registry
from common.messages import Query
from common.profile import Profile
from device.strategy import Frame, Plan
from server.memory import NOTHING
from server.models.bert import Bert
from server.serving import Serving, strategies
from server.strategy import PassOn
from tests.sentences_stub import EDGE, SENTENCES, bundle, tiny_text

NAMES = ("dimec", "dimee")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return tiny_text(Path(tmp_path_factory.mktemp("profile")))


def asked(profile: Profile, name: str, route: str) -> Query:
    strategy = registry.load("device.strategies", name).create(bundle(profile))
    made = next(strategy.infer(Frame(0, "0", SENTENCES[0], 0.0), Plan(name, {"route": route})))
    assert isinstance(made, Query)
    return made


def test_an_edge_holds_its_layers_and_answers_the_same(profile: Profile) -> None:
    whole, edge = Serving(profile), Serving(profile, edge=True)
    served = [strategies(serving) for serving in (whole, edge)]
    depths = [len(serving.model("bert", Bert).encoder.layer) for serving in (whole, edge)]
    assert depths == [whole.model("bert", Bert).config.depth, EDGE]
    for name in NAMES:
        served[1][name].warm()
        query = asked(profile, name, "edge")
        rows = [
            each[name].forward([each[name].prepare(query, NOTHING)])[0].probabilities
            for each in served
        ]
        np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_for_the_cloud_is_passed_on(profile: Profile, name: str) -> None:
    edge = strategies(Serving(profile, edge=True))[name]
    query = asked(profile, name, "cloud")
    for each in (query, replace(query, params={})):
        with pytest.raises(PassOn):
            edge.prepare(each, NOTHING)
