"""What only super-resolution does, both halves without a wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import patches, registry
from common.codec import decode, encode
from common.errors import ConfigError, Refused
from common.messages import Query
from common.profile import Profile, load
from device.bundle import Bundle
from device.strategy import Frame, Plan
from server.memory import NOTHING
from server.models.superres import SuperResolution, resample
from server.serving import Serving, strategies
from server.strategy import Strategy
from tests.profiles import picture, tiny


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return load(tiny(tmp_path_factory.mktemp("isr")))


@pytest.fixture(scope="module")
def serving(profile: Profile) -> Serving:
    return Serving(profile)


@pytest.fixture(scope="module")
def server(serving: Serving) -> Strategy:
    return strategies(serving, ["isr"])["isr"]


def asked(profile: Profile, **params: Any) -> Query:
    bundle = Bundle(profile.manifest, profile.directory)
    device = registry.load("device.strategies", "isr").create(bundle)
    query: Query = next(device.infer(Frame(0, "0", picture(profile, 5), 0.0), Plan("isr", params)))
    return query


def answered(server: Strategy, query: Query) -> np.ndarray:
    return server.forward([server.prepare(query, NOTHING)])[0].probabilities


def test_the_network_restores_the_frame_that_is_classified(
    profile: Profile, serving: Serving, server: Strategy
) -> None:
    query = asked(profile, scale=0.5, codec="raw")
    small = decode(query.tensors["frame"])
    assert small.shape == (32, 32, 3)
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
    network = serving.model("superres", SuperResolution)
    whole = network.restore(pixels, 64, 64)
    assert (whole - resample(pixels, 64, 64)).abs().max() > 0.01

    index = np.arange(64 * 64 * 3).reshape(64, 64, 3)
    tiles = index.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(16, 768)
    frame = picture(profile, 5)
    assert np.array_equal(frame.reshape(-1)[tiles], patches.patchify(frame, 16))
    rows = whole[0].permute(1, 2, 0).reshape(-1)[torch.from_numpy(tiles)]
    with torch.inference_mode():
        expected, _ = serving.classify(rows[None])
    np.testing.assert_allclose(answered(server, query), expected[0], atol=1e-5)


def test_a_whole_frame_is_answered_as_raw_is(
    profile: Profile, serving: Serving, server: Strategy
) -> None:
    frame = picture(profile, 5)
    raw = strategies(serving, ["raw"])["raw"]
    query = Query("raw", "whole", tensors={"frame": encode(frame)})
    for codec in ("raw", "lz4", "zstd"):
        whole = answered(server, asked(profile, scale=1.0, codec=codec))
        np.testing.assert_allclose(whole, answered(raw, query), atol=1e-5)


def test_frames_of_one_size_share_a_forward(profile: Profile, server: Strategy) -> None:
    keys = [server.prepare(asked(profile, scale=s), NOTHING).key for s in (0.5, 0.5, 0.7)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("shape", [(65, 64, 3), (64, 65, 3), (0, 64, 3), (64, 64, 1)])
def test_what_is_no_small_frame_is_refused(server: Strategy, shape: tuple[int, ...]) -> None:
    query = Query("isr", "whole", tensors={"frame": encode(np.zeros(shape, np.uint8))})
    with pytest.raises(Refused, match="bad"):
        server.prepare(query, NOTHING)


def test_a_profile_without_the_network_is_a_config_error(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    document = json.loads((directory / "profile.json").read_text())
    del document["models"]["superres"]
    (directory / "profile.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="one model of kind 'superres'"):
        strategies(Serving(load(directory)), ["isr"])
