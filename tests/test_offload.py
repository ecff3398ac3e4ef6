"""DeepCOD's baselines: what is sent, what the server makes of it, and how settings are chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, Refused
from common.messages import Query
from common.offloading import (
    Part,
    Setting,
    banded,
    block,
    blocks,
    cut,
    projection,
    sensed,
)  # fmt: skip
from common.profile import Profile, load
from device.bundle import Bundle
from device.planes import planes, resampled
from device.strategies import offload
from device.strategy import Frame, Plan
from profiles.amend import amend
from profiles.export_deepcod import stages_onnx
from profiles.export_tail import tail_onnx
from server.memory import NOTHING
from server.models.cnn import Cnn
from server.sensing import joined, recover, transform
from server.serving import Serving
from server.strategies import offload as served
from server.strategy import Work
from tests.offloads import PARAMS
from tests.profiles import picture, tiny

SHAPES = st.sampled_from([(1, 112, 112), (2, 56, 56), (3, 7, 7), (2, 4, 4), (5, 30), (4, 21)])
EVERYTHING = [
    (point, method, rate)
    for point, methods in PARAMS["settings"].items()
    for method, rows in methods.items()
    for rate in range(1, len(rows) + 1)
] + [("input", "lossless", 1), ("block-1", "lossless", 1), ("input", "ae", 1)]


class Pair:
    """Both halves for the tests' profile."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        present = {file.path for file in profile.manifest.files}
        self.device = offload.create(Bundle(profile.manifest, profile.directory, present))
        self.serving = Serving(profile)
        self.server = served.create(self.serving)
        self.cnn = self.serving.model("cnn", Cnn)

    def query(self, seed: int = 1, **params: Any) -> Query:
        frame = Frame(seed, str(seed), picture(self.profile, seed), 0.0)
        return next(self.device.infer(frame, Plan("offload", params)))

    def restored(self, work: Work) -> torch.Tensor:
        """What the model's rest is given of `work`."""
        seen: list[torch.Tensor] = []

        def behind(x: torch.Tensor, point: str) -> Any:
            seen.append(x)
            return Cnn.behind(self.cnn, x, point)

        self.cnn.behind = behind  # type: ignore[method-assign]
        try:
            self.server.forward([work])
        finally:
            del self.cnn.behind
        return seen[0][0]

    def true(self, point: str, seed: int = 1) -> torch.Tensor:
        pixels = torch.from_numpy(picture(self.profile, seed)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            return self.cnn.before(pixels, point)[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(load(tiny(tmp_path_factory.mktemp("profile"))))


@pytest.mark.parametrize(("point", "method", "rate"), EVERYTHING)
def test_every_method_is_answered_and_batches_well(
    pair: Pair, point: str, method: str, rate: int
) -> None:
    queries = [pair.query(seed, point=point, method=method, rate=rate) for seed in range(3)]
    works = [pair.server.prepare(query, NOTHING) for query in queries]
    together = pair.server.forward(works)
    for work, outcome in zip(works, together, strict=True):
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)
        (alone,) = pair.server.forward([work])
        np.testing.assert_allclose(alone.probabilities, outcome.probabilities, atol=1e-5)


@pytest.mark.parametrize("point", ["input", "block-1"])
def test_without_loss_the_rest_of_the_model_sees_what_lay_there(pair: Pair, point: str) -> None:
    work = pair.server.prepare(pair.query(point=point, method="lossless"), NOTHING)
    near = 2 / 255 if point == "input" else 2e-3
    assert (pair.restored(work) - pair.true(point)).abs().max() < near


@pytest.mark.parametrize(
    ("method", "rate", "near"),
    [("lossy", 1, 0.06), ("intp", 1, 0.12), ("cs", 1, 0.12), ("jpeg", 2, 0.06), ("webp", 1, 0.06)],
)
def test_a_picture_comes_back_nearly(pair: Pair, method: str, rate: int, near: float) -> None:
    work = pair.server.prepare(pair.query(method=method, rate=rate), NOTHING)
    assert (pair.restored(work) - pair.true("input")).abs().mean() < near


@pytest.mark.parametrize("method", ["lossy", "jpeg"])
def test_features_come_back_within_a_step(pair: Pair, method: str) -> None:
    work = pair.server.prepare(pair.query(method=method, point="block-1"), NOTHING)
    off = (pair.restored(work) - pair.true("block-1").clamp(0, 1)).abs()
    assert off.max() < 0.5 / 7 + 1e-3 if method == "lossy" else off.mean() < 0.03


def test_what_the_profile_has_not_is_refused(pair: Pair) -> None:
    wrongs: tuple[dict[str, Any], ...] = (
        {"rate": 9}, {"method": "intp", "point": "block-3"}, {"method": "device"},
        {"method": "lossless", "point": "block-3"}, {"method": "ae", "point": "block-1"},
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            pair.query(**wrong)
    query = pair.query()
    for params in (
        {**query.params, "rate": 9}, {**query.params, "rate": 1.5}, {**query.params, "point": 3},
        {**query.params, "method": "magic"}, {**query.params, "method": ["lossy"]},
        {**query.params, "method": "jpeg"}, {**query.params, "method": "ae"},
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            pair.server.prepare(Query("offload", "offloaded", params, query.tensors), NOTHING)
        assert refused.value.code == "bad"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_whole_model_runs_on_the_device(tmp_path: Path, count: int) -> None:
    root = tiny(tmp_path)
    cnn = Pair(load(root)).cnn
    weights = root / "weights" / "cnn.safetensors"
    size = (64, 64)
    made = [*stages_onnx(cnn, weights, size, count), tail_onnx(cnn, weights, size, count)]
    files = {f"weights/{path.name}": path for path in (*made, weights)}
    *stages, tail = list(files)[:-1]
    own = {"stages": stages, "tail": tail, "method": "device"}
    amend(root, strategies={"offload": own}, files=files)
    pair = Pair(load(root))
    with pytest.raises(StopIteration) as stop:
        pair.query()
    answer = stop.value.value
    with torch.inference_mode():
        logits = cnn.behind(pair.true("input")[None], "input")[-1][0]
    assert answer.prob == pytest.approx(float(logits.softmax(0).max()), abs=5e-3)
    assert (answer.source, answer.rounds) == ("device", 0)


# The geometry that both sides share.


@given(SHAPES)
def test_blocks_cut_are_joined_again(shape: tuple[int, ...]) -> None:
    plane = np.random.default_rng(0).random(shape, dtype=np.float32)
    pieces = cut(plane)
    assert pieces.shape == blocks(shape)
    back = joined(torch.from_numpy(pieces)[None], shape)
    assert torch.equal(back[0], torch.from_numpy(plane))


@given(SHAPES)
def test_bands_have_no_more_places_than_books_take(shape: tuple[int, ...]) -> None:
    assert math.prod(banded(shape)) == math.prod(shape)
    assert math.prod(banded(shape)[1:]) <= 2048
    long = banded((1, 12_345))
    assert (math.prod(long), long[1] <= 2048) == (12_345, True)


@given(st.floats(-100, 100), st.floats(0.1, 100), st.integers(2, 256))
def test_a_part_is_restored_within_half_a_step(low: float, span: float, levels: int) -> None:
    part = Part(low, low + span, levels)
    values = np.linspace(low, low + span, 50, dtype=np.float32)
    off = np.abs(part.restore(part.quantise(values)) - values).max()
    assert off <= 0.5 * span / (levels - 1) + 1e-4 * (abs(low) + span)
    outside = part.quantise(np.array([low - 9 * span, low + 9 * span], np.float32))
    assert outside.tolist() == [0, levels - 1]


def test_measurements_are_orthonormal_and_always_the_same() -> None:
    rows = projection(49)
    np.testing.assert_allclose(rows @ rows.T, np.eye(49), atol=1e-5)
    np.testing.assert_allclose(rows[0], np.full(49, 1 / 7), atol=1e-5)
    assert sensed(49, 0.01) == 2
    assert sensed(49, 1.0) == 49


def test_ista_recovers_what_is_sparse_from_fewer_measurements() -> None:
    """Of blocks of 256 with 6 coefficients each, 40 % random projections tell nearly all."""
    shape = (1, 32, 32)
    random = np.random.default_rng(0)
    theta = np.zeros((4, 256), np.float32)
    for row in theta:
        row[random.choice(64, 6, replace=False)] = random.normal(0, 100, 6)
    truth = joined(torch.from_numpy(theta)[None] @ transform(block(shape)), shape)
    measured = cut(truth[0].numpy()) @ projection(256)[: sensed(256, 0.4)].T
    found = recover(torch.from_numpy(measured)[None], shape, 0.5)
    assert (found - truth).square().mean() < 0.01 * truth.square().mean()
    blurred = recover(torch.from_numpy(measured)[None], shape, 0.5, iterations=1)
    assert (found - truth).square().mean() < 0.1 * (blurred - truth).square().mean()


def test_planes_are_brightness_and_colours_at_half_the_size() -> None:
    grey = np.full((32, 32, 3), 90, np.uint8)
    brightness, colours = planes(grey, [(1, 16, 16), (2, 8, 8)])
    np.testing.assert_allclose(brightness, 90, atol=1e-3)
    np.testing.assert_allclose(colours, 0, atol=1e-3)
    ramp = np.arange(32, dtype=np.float32)[None, None, :].repeat(4, 1)
    assert resampled(ramp, (1, 4, 16)).shape == (1, 4, 16)
    np.testing.assert_allclose(resampled(ramp, (1, 2, 32))[0, 0], ramp[0, 0], atol=1e-4)
    with pytest.raises(ValueError, match="no planes"):
        planes(grey, [(1, 15, 15), (2, 8, 8)])


@pytest.mark.parametrize(
    "row",
    [{}, {"scale": 2, "parts": [[0, 1, 4]]}, {"scale": 1, "parts": [[1, 0, 4]]},
     {"scale": 1, "parts": [[0, 1, 1]]}, {"scale": 1, "parts": [[0, 1]]}],
)  # fmt: skip
def test_a_setting_that_is_none_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a setting of offload"):
        Setting.of(row)
