"""Janus that decides by itself: what it asks, what it is told, and how it finishes alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import profile as profiles_of
from common.codec import encode
from common.errors import ConfigError, Unavailable
from common.messages import NO_DEADLINE, Query, Result
from common.profile import Profile
from device.bundle import Bundle
from device.link import Estimate
from device.machine import Machine
from device.output import record
from device.params import from_user
from device.strategies import janus
from device.strategy import Answer, Frame, Plan
from profiles.amend import amend
from server.memory import NOTHING
from server.serving import Serving
from server.strategies import janus as on_server
from tests.profiles import picture, tiny

AUTO = {"split": "auto"}
LATENCY = {
    "device": Machine((1, 17), (5.0, 90.0), (0.0, 0.0), first=5.0, last=1.0).written(),
    "server": Machine((1, 17), (0.1, 1.0), (0.0, 0.0), first=0.2, last=0.1).written(),
    "codings": {
        name: {"token": token, "fixed": 30.0, "ms": 0.001}
        for name, token in (("fp32", 64.0), ("fp16", 32.0), ("int8", 18.0))
    },
    "frames": {f"jpeg-{q}": {"fixed": 30.0 * q, "ms": 0.1} for q in (90, 75, 50)},
}
"""A device that takes long for what little there is to do."""
FAST, SILENT = Estimate(1e7, 0.002), Estimate(None, 0.002)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    root = tiny(tmp_path)
    amend(root, strategies={"janus": {"latency": LATENCY}})
    return profiles_of.load(root)


@pytest.fixture
def strategy(profile: Profile) -> janus.Janus:
    files = {file.path for file in profile.manifest.files}
    return janus.create(Bundle(profile.manifest, profile.directory, files))


def frame(profile: Profile) -> Frame:
    return Frame(0, "one", picture(profile), time.monotonic())


def served(profile: Profile, query: Query) -> Result:
    server = on_server.create(Serving(profile))
    (outcome,) = server.forward([server.prepare(query, NOTHING)])
    return Result("server", {"probabilities": encode(outcome.probabilities)}, server_ms=1.0)


def finished(conversation: Any, reply: Result | Exception) -> Answer:
    on = conversation.throw if isinstance(reply, Exception) else conversation.send
    with pytest.raises(StopIteration) as stop:
        on(reply)
    answer: Answer = stop.value.value
    return answer


def test_without_a_deadline_the_frame_is_sent_and_waited_for(
    strategy: janus.Janus, profile: Profile
) -> None:
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, link=FAST))
    query = next(asked)
    assert (query.step, query.ms_left) == ("frame", NO_DEADLINE)
    answer = finished(asked, served(profile, query))
    assert answer.source == "server"
    assert answer.chosen is not None
    assert answer.chosen["split"] == 0
    assert str(answer.chosen["coding"]).startswith("jpeg-")
    assert len(query.params["merges"]) == 2  # type: ignore[arg-type]
    assert answer.predicted_ms is not None
    assert record(answer)["predicted_ms"] == round(answer.predicted_ms, 3)
    assert json.loads(json.dumps(record(answer)))["chosen"]["split"] == 0


def test_what_was_measured_is_heard(strategy: janus.Janus, profile: Profile) -> None:
    steering = strategy.steering
    assert steering is not None
    for _ in range(2):
        asked = strategy.infer(frame(profile), Plan("janus", AUTO, link=FAST))
        result = served(profile, next(asked))
        finished(asked, replace(result, server_ms=900.0, queue_ms=890.0))
    assert steering.queue > 0
    assert steering.speed > 1
    with pytest.raises(StopIteration) as stop:
        next(strategy.infer(frame(profile), Plan("janus", AUTO, link=FAST)))
    answer: Answer = stop.value.value
    assert answer.source == "device"


def test_frames_that_are_smaller_than_profiled_are_expected_to_be(
    strategy: janus.Janus, profile: Profile
) -> None:
    steering = strategy.steering
    assert steering is not None
    before = steering.costs.size[0, 0].copy()
    links = []
    for _ in range(3):
        asked = strategy.infer(frame(profile), Plan("janus", AUTO, link=FAST))
        query = next(asked)
        links.append(steering.decide(0.0, 1e9, 0.0).link_ms)
        asked.close()
    size = len(query.tensors["frame"].data)
    after = steering.costs.size[0, 0]
    assert abs(after[0] - size) < abs(before[0] - size)
    assert after / before == pytest.approx([after[0] / before[0]] * 3)
    assert links[0] != links[1]


def test_a_link_that_fails_leaves_the_device_to_finish(
    strategy: janus.Janus, profile: Profile
) -> None:
    """With as many merges as fit in what is left, and it says why."""
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=FAST))
    query = next(asked)
    assert 0 < query.ms_left < 1000
    answer = finished(asked, Unavailable("no answer in time"))
    assert (answer.source, answer.rounds) == ("device", 0)
    assert answer.degraded == "server: no answer in time"
    assert answer.chosen is not None
    assert answer.chosen["split"] == 0


def test_every_part_is_open_before_a_frame_is_sent(strategy: janus.Janus, profile: Profile) -> None:
    """Opening takes longer than running: a frame that was given up could not be finished."""
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=FAST))
    assert next(asked).step == "frame"
    assert len(strategy.head._open) == strategy.head.layers


def test_what_a_failed_split_finishes_is_what_the_server_would_have(
    strategy: janus.Janus, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device goes on with the same tokens and the same merges."""
    steering = strategy.steering
    assert steering is not None
    costs = steering.costs
    merging = [i for i, alpha in enumerate(costs.alphas) if alpha > 0]
    at = (merging[-1], 1, 0)
    chosen = replace(
        steering.decide(0.0, 1e9, 0.0), at=at, alpha=costs.alphas[at[0]], split=1, coding="fp16"
    )
    monkeypatch.setattr(steering, "decide", lambda *_: chosen)
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=FAST))
    query = next(asked)
    assert query.step == "tokens"
    remote = finished(asked, served(profile, query))
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=FAST))
    next(asked)
    local = finished(asked, Unavailable("gone"))
    assert local.label == remote.label
    assert local.prob == pytest.approx(remote.prob, abs=2e-3)


@pytest.mark.parametrize("reply", ["served", "lost"])
def test_after_a_failure_the_device_works_beside_the_try(
    strategy: janus.Janus, profile: Profile, reply: str
) -> None:
    steering = strategy.steering
    assert steering is not None
    steering.gave_up(time.monotonic() * 1e3 - 1e5, 1e4, 1.0)
    asked = strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=FAST))
    query = next(asked)
    assert query.ms_left < 1000
    if reply == "lost":
        answer = finished(asked, Unavailable("gone"))
        assert (answer.source, answer.degraded) == ("device", "server: gone")
        assert steering.decide(time.monotonic() * 1e3 + 1e5, 1000.0, 2.0).beside
    else:
        assert finished(asked, served(profile, query)).source == "server"
        assert not steering.decide(time.monotonic() * 1e3, 1000.0, 2.0).beside


def test_a_slow_link_leaves_the_device_alone(strategy: janus.Janus, profile: Profile) -> None:
    steering = strategy.steering
    assert steering is not None
    steering.answered(time.monotonic() * 1e3, 10.0, 1e4)
    with pytest.raises(StopIteration) as stop:
        next(strategy.infer(frame(profile), Plan("janus", AUTO, 1000.0, link=SILENT)))
    answer: Answer = stop.value.value
    assert answer.chosen is not None
    assert (answer.source, answer.degraded) == ("device", None)
    assert answer.chosen["coding"] is None
    assert steering.load < 1  # it took less than profiled


def test_a_profile_that_was_not_measured_says_what_to_do(tmp_path: Path) -> None:
    profile = profiles_of.load(tiny(tmp_path))
    files = {file.path for file in profile.manifest.files}
    strategy = janus.create(Bundle(profile.manifest, profile.directory, files))
    for split in ("auto", "fastest"):
        with pytest.raises(ConfigError, match=r"\./run measure"):
            next(strategy.infer(frame(profile), Plan("janus", {"split": split})))


def test_a_measured_profile_decides_by_itself_unless_it_is_set(profile: Profile) -> None:
    for measured, split in ((profiles_of.load("imagenette"), "auto"), (profile, 1)):
        files = {file.path for file in measured.manifest.files}
        made = janus.create(Bundle(measured.manifest, measured.directory, files))
        assert made.params["split"] == split


def test_the_fastest_split_follows_the_link_and_keeps_the_merging(
    strategy: janus.Janus, profile: Profile
) -> None:
    settings = {"split": "fastest", "schedule": "fixed", "r": 2, "frame": "jpeg"}
    asked = strategy.infer(frame(profile), Plan("janus", settings, link=FAST))
    query = next(asked)
    assert query.params["merges"] == [2, 2]
    assert query.step == "frame"
    sent = finished(asked, served(profile, query))
    assert sent.chosen == {"split": 0, "coding": "jpeg-90"}
    assert sent.predicted_ms is not None
    with pytest.raises(StopIteration) as stop:
        next(strategy.infer(frame(profile), Plan("janus", settings, link=Estimate(10.0, 0.002))))
    alone: Answer = stop.value.value
    assert (alone.source, alone.chosen) == ("device", {"split": 3, "coding": None})


def test_a_coding_that_was_not_measured_is_said(strategy: janus.Janus, profile: Profile) -> None:
    settings = {"split": "fastest", "frame": "lzw"}
    with pytest.raises(ConfigError, match=r"'lzw' was not measured: \./run measure"):
        next(strategy.infer(frame(profile), Plan("janus", settings, link=FAST)))


def test_a_spoiled_measurement_is_refused(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    amend(root, strategies={"janus": {"latency": {**LATENCY, "frames": {}}}})
    profile = profiles_of.load(root)
    files = {file.path for file in profile.manifest.files}
    with pytest.raises(ConfigError, match="measure PROFILE again"):
        janus.create(Bundle(profile.manifest, profile.directory, files))


def test_split_takes_numbers_and_words() -> None:
    assert from_user("janus", janus.PARAMS, {"split": "auto"}) == {"split": "auto"}
    assert from_user("janus", janus.PARAMS, {"split": "3"}) == {"split": 3}
    assert from_user("janus", janus.PARAMS, {"split": "fastest"}) == {"split": "fastest"}
    with pytest.raises(ConfigError, match="or 'auto' or 'fastest'"):
        from_user("janus", janus.PARAMS, {"split": "often"})


def test_predictions_are_finite(strategy: janus.Janus) -> None:
    steering = strategy.steering
    assert steering is not None
    assert np.isfinite(steering.costs.device).all()
    assert np.isfinite(steering.costs.size).all()
