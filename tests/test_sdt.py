"""What only server-driven transmission does, both halves without a wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import patches, registry
from common.codec import decode
from common.errors import Refused
from common.profile import Profile, load
from device.bundle import Bundle
from device.strategy import Frame, Plan
from profiles.calibrate import Talk
from server.serving import Serving
from tests.profiles import picture, tiny

Talking = Callable[..., Talk]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return load(tiny(tmp_path_factory.mktemp("sdt")))


@pytest.fixture(scope="module")
def serving(profile: Profile) -> Serving:
    return Serving(profile)


@pytest.fixture(scope="module")
def talk(profile: Profile, serving: Serving) -> Talking:
    device = registry.load("device.strategies", "sdt").create(
        Bundle(profile.manifest, profile.directory)
    )
    server = registry.load("server.strategies", "sdt").create(serving)

    def converse(seed: int = 3, **params: Any) -> Talk:
        frame = Frame(seed, str(seed), picture(profile, seed), 0.0)
        made = Talk(device.infer(frame, Plan("sdt", params)))
        made.query = next(made.conversation)
        while made.query is not None:
            (outcome,) = server.forward([server.prepare(made.query, made)])
            made.answer(outcome)
        return made

    return converse


def classified(serving: Serving, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        probabilities, attention = serving.classify(
            serving.pixels([patches.patchify(frame, serving.input.patch)])
        )
    return probabilities[0], attention[0]


def test_it_sends_the_frame_small_then_what_attention_is_highest_on(
    talk: Talking, profile: Profile, serving: Serving
) -> None:
    made = talk(codec="raw", scale=0.5, r2=0.25)
    low, supply = made.asked
    assert low.tensors["frame"].shape == (32, 32, 3)
    up = patches.unpatchify(serving.scaled_frame(low), 64, 64, 16)
    probabilities, attention = classified(serving, up)
    np.testing.assert_allclose(made.said[0], probabilities, atol=1e-5)
    wanted = np.sort(np.argsort(-attention)[:4])
    frame = picture(profile, 3)
    assert np.array_equal(decode(supply.tensors["patches"]), patches.take(frame, wanted, 16))

    pasted = patches.patchify(up, 16)
    pasted[wanted] = patches.take(frame, wanted, 16)
    second, _ = classified(serving, patches.unpatchify(pasted, 64, 64, 16))
    np.testing.assert_allclose(made.said[1], second, atol=1e-5)


def test_all_patches_in_round_two_answer_as_the_raw_frame_does(
    talk: Talking, profile: Profile, serving: Serving
) -> None:
    made = talk(codec="raw", scale=0.05, r2=1.0)
    probabilities, _ = classified(serving, picture(profile, 3))
    np.testing.assert_allclose(made.said[1], probabilities, atol=1e-5)
    assert np.abs(made.said[0] - probabilities).max() > 1e-4


def test_the_threshold_decides_on_round_two(talk: Talking) -> None:
    sure = float(talk().said[0].max())
    assert len(talk(threshold=sure - 0.01).asked) == 1
    assert len(talk(threshold=min(1.0, sure + 0.01)).asked) == 2
    assert len(talk(r2=0.0).asked) == 1


def test_frame_and_patches_have_qualities_of_their_own(talk: Talking) -> None:
    def sizes(**params: int) -> list[int]:
        asked = talk(r2=0.5, scale=1.0, **params).asked
        return [len(t.data) for query in asked for t in query.tensors.values()]

    coarse, fine = sizes(low_quality=10, quality=50), sizes(low_quality=80, quality=50)
    assert coarse[0] < fine[0]
    assert sizes(low_quality=10, quality=90)[1] > coarse[1]


def test_patches_that_were_not_asked_for_are_refused(talk: Talking, serving: Serving) -> None:
    made = talk(r2=0.25, codec="raw")
    supply = made.asked[1]
    few = {"patches": replace(supply.tensors["patches"], shape=(3, 768))}
    server = registry.load("server.strategies", "sdt").create(serving)
    low = server.prepare(made.asked[0], made)
    (first,) = server.forward([low])
    made.remembered = first.remember
    with pytest.raises(Refused, match="bad"):
        server.prepare(replace(supply, tensors=few), made)


def test_memory_holds_no_packet(talk: Talking, serving: Serving, profile: Profile) -> None:
    server = registry.load("server.strategies", "sdt").create(serving)
    made = talk(scale=1.0, codec="raw")
    (first,) = server.forward([server.prepare(made.asked[0], made)])
    assert first.remember.patches.base is None
    assert first.size == 64 * 64 * 3 + 8 * 4


@pytest.mark.parametrize("scale", [0.05, 0.31, 1.0])
def test_any_scale_is_served(talk: Talking, scale: float, tmp_path: Path) -> None:
    assert len(talk(scale=scale, r2=0.1).said) == 2
