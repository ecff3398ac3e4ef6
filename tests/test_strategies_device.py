"""One suite that the device half of every strategy in the folder passes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import patches, registry
from common.codec import decode
from common.errors import Refused, Unavailable
from common.messages import Query
from common.profile import Manifest
from device.bundle import Bundle, Cache
from device.params import Param
from device.strategy import Answer, Frame, Plan, Strategy
from tests import tiers_stub
from tests.device_stub import (
    CLASSES,
    PATCH,
    SIDE,
    classify,
    computing_models,
    encoder_file,
    local_model,
    manifest,
    result,
    shade,
)

PACKAGE = "device.strategies"
NAMES = registry.names(PACKAGE)
FILES = {
    "device/local.onnx": local_model(),
    "device/deepcod-1.npz": encoder_file(),
    **computing_models(),
    **tiers_stub.files(3 * PATCH**2),
}
TOTAL = (SIDE // PATCH) ** 2
FIRST = ("sample", "low")
"""The first steps of strategies of two rounds."""


def bundle(root: Path, made: Manifest | None = None) -> Bundle:
    cache = Cache(root)
    bundle = cache.add(made or manifest(FILES))
    for file in bundle.missing():
        cache.put(bundle, file, FILES[file.path])
    return bundle


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def strategy(name: str, tmp_path: Path) -> Strategy:
    made: Strategy = registry.load(PACKAGE, name).create(bundle(tmp_path))
    return made


def frame(label: int = 1, index: int = 0) -> Frame:
    return Frame(index, f"{index}.png", shade(label), time.monotonic())


def converse(
    strategy: Strategy, name: str, label: int = 1, index: int = 0, fail: Exception | None = None,
    fail_at: int = 0, **params: Any,
) -> tuple[Answer, list[Query]]:  # fmt: skip
    """Drive a conversation with an honest server; throw `fail` in place of answer `fail_at`."""
    steps = strategy.infer(frame(label, index), Plan(name, params))
    asked: list[Query] = []
    try:
        query = next(steps)
        while True:
            asked.append(query)
            if fail is not None and len(asked) - 1 == fail_at:
                query = steps.throw(fail)
                continue
            wants = patches.pack(np.arange(4), TOTAL) if query.step in FIRST else None
            reply = result(classify(shade(label)), wants=wants)
            query = steps.send(replace(reply, id=100 + len(asked)))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer, asked


def test_it_says_its_parameters(name: str) -> None:
    params = registry.load(PACKAGE, name).PARAMS
    for key, param in params.items():
        assert isinstance(param, Param)
        assert param.check(key, param.default) == param.default


@pytest.mark.parametrize("label", range(4))
def test_it_answers(strategy: Strategy, name: str, label: int) -> None:
    answer, asked = converse(strategy, name, label)
    assert answer.label == CLASSES[label]
    assert answer.prob == answer.top[0][1] == max(prob for _, prob in answer.top)
    assert (answer.strategy, answer.rounds) == (name, len(asked))
    assert answer.source == ("edge" if asked else "device")
    assert (answer.degraded, answer.error) == (None, None)


def test_its_queries_can_be_sent(strategy: Strategy, name: str) -> None:
    _, asked = converse(strategy, name)
    for number, query in enumerate(asked):
        assert query.strategy == name
        assert query.memory == (0 if number == 0 else 100 + number)
        for tensor in query.tensors.values():
            array = decode(tensor)
            assert (str(array.dtype), array.shape) == (tensor.dtype, tensor.shape)


def test_the_same_frame_gives_the_same_queries(strategy: Strategy, name: str) -> None:
    def sent(index: int) -> list[dict[str, bytes]]:
        _, asked = converse(strategy, name, index=index)
        return [{key: bytes(t.data) for key, t in query.tensors.items()} for query in asked]

    assert sent(5) == sent(5)


@pytest.mark.parametrize("error", [Refused("busy", "full", retryable=True), Unavailable("gone")])
def test_what_fails_at_once_passes_through(strategy: Strategy, name: str, error: Exception) -> None:
    if name == "local":
        assert converse(strategy, name, fail=error)[0].error is None
        return
    if name in tiers_stub.NAMES:  # it has layers of its own to fall back on
        answer, _ = converse(strategy, name, fail=error)
        assert (answer.label, answer.source, answer.rounds) == (CLASSES[1], "device", 0)
        assert str(error) in str(answer.degraded)
        return
    with pytest.raises(type(error)):
        converse(strategy, name, fail=error)


@pytest.mark.parametrize("error", [Refused("forgotten", "gone"), Unavailable("late")])
def test_what_fails_later_leaves_the_provisional_answer(
    strategy: Strategy, name: str, error: Exception
) -> None:
    _, asked = converse(strategy, name)
    for fail_at in range(1, len(asked)):
        answer, _ = converse(strategy, name, fail=error, fail_at=fail_at)
        assert (answer.label, answer.rounds) == (CLASSES[1], fail_at)
        assert answer.degraded is not None
        assert str(error) in answer.degraded


# What each sends.


def test_raw_sends_the_frame(tmp_path: Path) -> None:
    strategy = registry.load(PACKAGE, "raw").create(bundle(tmp_path))
    for codec in ("raw", "lz4", "zstd"):
        _, (query,) = converse(strategy, "raw", codec=codec)
        assert query.step == "whole"
        assert query.tensors["frame"].codec == codec
        assert np.array_equal(decode(query.tensors["frame"]), shade(1))


@pytest.mark.parametrize(("scale", "side"), [(1.0, 64), (0.5, 32), (0.3, 19)])
def test_jpeg_sends_a_picture_of_its_real_size(tmp_path: Path, scale: float, side: int) -> None:
    strategy = registry.load(PACKAGE, "jpeg").create(bundle(tmp_path))
    _, (query,) = converse(strategy, "jpeg", scale=scale)
    assert query.tensors["frame"].shape == (side, side, 3)
    assert abs(float(decode(query.tensors["frame"]).mean()) - shade(1).mean()) < 4


def test_jpeg_quality_costs_bytes(tmp_path: Path) -> None:
    strategy = registry.load(PACKAGE, "jpeg").create(bundle(tmp_path))
    sizes = [
        len(converse(strategy, "jpeg", quality=quality)[1][0].tensors["frame"].data)
        for quality in (20, 60, 95)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("codec", ["mosaic", "raw", "lz4", "zstd"])
def test_amot_sends_what_its_bitmap_says(tmp_path: Path, codec: str) -> None:
    strategy = registry.load(PACKAGE, "amot").create(bundle(tmp_path))
    answer, (sample, supply) = converse(strategy, "amot", index=3, codec=codec, r1=0.5, r2=0.3)
    assert answer.rounds == 2
    assert sample.params == {"threshold": 0.8, "r2": 0.3}
    sampled = patches.unpack(bytes(sample.tensors["bitmap"].data), TOTAL)
    assert len(sampled) == 8
    for query, indices in ((sample, sampled), (supply, np.arange(4))):
        sent = decode(query.tensors["patches"])
        expected = patches.take(shade(1), indices, PATCH)
        if codec == "mosaic":
            assert query.tensors["patches"].codec == "jpeg"
            sent = patches.unmosaic(sent, len(indices), PATCH)
            assert abs(float(sent.mean()) - expected.mean()) < 4
        else:
            assert np.array_equal(sent, expected)


def test_amot_samples_at_random_but_repeatably(tmp_path: Path) -> None:
    strategy = registry.load(PACKAGE, "amot").create(bundle(tmp_path))
    bitmaps = {
        bytes(converse(strategy, "amot", index=index)[1][0].tensors["bitmap"].data)
        for index in range(20)
    }
    assert len(bitmaps) > 15


@pytest.mark.parametrize("r1", [0.005, 1.0])
def test_amot_sends_one_patch_at_least_and_all_at_most(tmp_path: Path, r1: float) -> None:
    strategy = registry.load(PACKAGE, "amot").create(bundle(tmp_path))
    _, (sample, _) = converse(strategy, "amot", r1=r1)
    count = len(patches.unpack(bytes(sample.tensors["bitmap"].data), TOTAL))
    assert count == (1 if r1 < 0.5 else TOTAL)


@pytest.mark.parametrize("wants", [None, bytes(2)])
def test_amot_ends_when_nothing_is_wanted(tmp_path: Path, wants: bytes | None) -> None:
    strategy = registry.load(PACKAGE, "amot").create(bundle(tmp_path))
    steps = strategy.infer(frame(), Plan("amot"))
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(result(classify(shade(1)), wants=wants))
    assert (stop.value.value.rounds, stop.value.value.degraded) == (1, None)


def test_local_needs_its_file(tmp_path: Path) -> None:
    create = registry.load(PACKAGE, "local").create
    with pytest.raises(Unavailable, match="not been fetched"):
        create(Cache(tmp_path).add(manifest(FILES)))
