"""The speech service: a tiny profile through both halves, the real one through the pair."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import pair
from common import profile as profiles
from common import registry
from common.codec import decode, encode
from common.errors import ConfigError, Refused
from common.messages import Query, Result
from common.profile import Profile, load
from common.sound import LONGEST, features
from device import inference
from device.bundle import Bundle
from device.strategy import Answer, Frame, Plan
from profiles.export_recogniser import recogniser_onnx, stages
from profiles.train.recogniser import to_features
from server.memory import NOTHING
from server.models.recogniser import Recogniser, RecogniserConfig
from server.serving import Serving, strategies
from server.strategy import Outcome, Strategy, Work
from tests.speech import BANDS, CLASSES, FRAMES, chirp, tiny_speech, tone, wav


@dataclass
class Both:
    """Both halves of a profile's strategies, without a wire."""

    profile: Profile
    served: dict[str, Strategy]
    bundle: Bundle

    def ask(self, name: str, seed: int, **params: Any) -> tuple[Query, Work, Outcome, Answer]:
        """One round about a sound."""
        device = registry.load("device.strategies", name).create(self.bundle)
        talk = device.infer(Frame(seed, str(seed), chirp(seed), 0.0), Plan(name, params))
        query = next(talk)
        work = self.served[name].prepare(query, NOTHING)
        (outcome,) = self.served[name].forward([work])
        with pytest.raises(StopIteration) as stop:
            talk.send(Result("edge", {"probabilities": encode(outcome.probabilities)}))
        return query, work, outcome, stop.value.value


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    profile = load(tiny_speech(tmp_path_factory.mktemp("speech")))
    present = {file.path for file in profile.manifest.files}
    bundle = Bundle(profile.manifest, profile.directory, present)
    return Both(profile, strategies(Serving(profile)), bundle)


RAW = ({"form": "frame"}, {"form": "samples"}, {"form": "mulaw"})
CODED = ({"point": "input"}, {"point": "block-1"})
REMOTE = [*(("raw", params) for params in RAW), *(("deepcod", params) for params in CODED)]


@pytest.mark.parametrize(("name", "params"), REMOTE)
def test_a_sound_gets_an_answer(both: Both, name: str, params: dict[str, Any]) -> None:
    both.served[name].warm()
    for seed in range(3):
        query, work, outcome, answer = both.ask(name, seed, **params)
        assert (query.strategy, work.key[0]) == (name, name)
        assert outcome.probabilities.dtype == np.float32
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)
        assert answer.label in CLASSES
        assert (answer.source, answer.rounds) == ("edge", 1)
        for tensor in query.tensors.values():
            array = decode(tensor)
            assert (str(array.dtype), array.shape) == (tensor.dtype, tensor.shape)


@pytest.mark.parametrize(("name", "params"), REMOTE)
def test_company_changes_no_answer(both: Both, name: str, params: dict[str, Any]) -> None:
    asked = [both.ask(name, seed, **params) for seed in range(4)]
    together = both.served[name].forward([work for _, work, _, _ in asked])
    for (_, _, alone, _), outcome in zip(asked, together, strict=True):
        np.testing.assert_allclose(outcome.probabilities, alone.probabilities, atol=1e-5)
    assert len({round(float(o.probabilities[0]), 4) for o in together}) > 1


def spoiled(query: Query) -> Iterator[Query]:
    """`query`, wrong in every way that the wire lets through."""
    yield replace(query, step="no such step")
    yield replace(query, tensors={})
    for key, tensor in query.tensors.items():
        shape = tensor.shape
        for wrong in (
            replace(tensor, dtype="float32"),
            replace(tensor, data=b""),
            replace(tensor, data=bytes(tensor.data)[:-1]),
            replace(tensor, codec="mosaic"),
            replace(tensor, codec="jpeg"),
            replace(tensor, shape=()),
            replace(tensor, shape=(*shape, 1)),
            replace(tensor, shape=(shape[0] + 1, *shape[1:])),
            replace(tensor, shape=(0, *shape[1:])),
            replace(tensor, shape=(10**6, *shape[1:])),
        ):
            yield replace(query, tensors={key: wrong})


@pytest.mark.parametrize(("name", "params"), REMOTE)
def test_what_is_wrong_is_refused(both: Both, name: str, params: dict[str, Any]) -> None:
    query = both.ask(name, 1, **params)[0]
    for wrong in spoiled(query):
        with pytest.raises(Refused) as refused:
            both.served[name].prepare(wrong, NOTHING)
        assert refused.value.code in ("bad", "unknown")
        assert not refused.value.retryable


def test_features_are_the_same_wherever_they_are_made(both: Both) -> None:
    sent, made = (both.ask("raw", 5, form=form)[1].arrays["frame"] for form in ("frame", "samples"))
    np.testing.assert_array_equal(sent, features(chirp(5), BANDS, FRAMES))
    assert np.abs(sent.astype(int) - made.astype(int)).max() <= 1  # 16 bits for a float


def test_the_forms_of_a_sound_differ_in_bytes(both: Both) -> None:
    sizes = [
        sum(len(t.data) for t in both.ask("raw", 2, codec="raw", **params)[0].tensors.values())
        for params in RAW
    ]
    assert sizes == [BANDS * FRAMES, 2 * len(chirp()), len(chirp())]


def test_the_longest_sound_is_the_limit(both: Both) -> None:
    raw = both.served["raw"]
    for count, right in ((LONGEST, True), (LONGEST + 1, False)):
        sound = encode(np.zeros(count, np.uint8))
        query = Query("raw", "whole", tensors={"samples": sound})
        if right:
            assert raw.prepare(query, NOTHING).arrays["frame"].shape == (BANDS, FRAMES, 1)
            continue
        with pytest.raises(Refused, match="n to 80000"):
            raw.prepare(query, NOTHING)


def test_a_picture_has_no_samples(both: Both) -> None:
    device = registry.load("device.strategies", "raw").create(both.bundle)
    frame = Frame(0, "a.png", np.zeros((4, 4, 3), np.uint8), 0.0)
    with pytest.raises(Refused, match="is for sounds"):
        next(device.infer(frame, Plan("raw", {"form": "samples"})))


def test_the_local_model_answers_as_the_server_does(both: Both) -> None:
    """Here both hold the same weights."""
    local = registry.load("device.strategies", "local").create(both.bundle)
    for seed in range(3):
        with pytest.raises(StopIteration) as stop:
            next(local.infer(Frame(0, "0", chirp(seed), 0.0), Plan("local")))
        served = both.ask("raw", seed)[3]
        assert stop.value.value.source == "device"
        assert dict(stop.value.value.top) == pytest.approx(dict(served.top), abs=0.01)


def test_strategies_of_pictures_are_not_for_sounds(both: Both) -> None:
    for name in ("amot", "jpeg"):
        with pytest.raises(ConfigError, match="does not offer"):
            strategies(Serving(both.profile), [name])


@torch.no_grad()
def test_it_can_be_cut_at_every_point_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recogniser(RecogniserConfig(4, BANDS, widths=(4, 6, 8, 10), kernel=3)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    frame = features(chirp(1), BANDS, FRAMES)
    x = to_features(frame[None])
    expected = model(x)
    for point in model.points:
        assert torch.equal(model.behind(model.before(x, point), point)[-1], expected)
    assert model.before(x, "block-3").shape == (1, 8, FRAMES // 4)
    macs = recogniser_onnx(model, FRAMES, tmp_path / "local.onnx")
    assert macs > BANDS * FRAMES * 4 * 3
    found = inference.load(tmp_path / "local.onnx")(frame)
    np.testing.assert_allclose(found, expected.softmax(1)[0].numpy(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_its_stages_are_those_of_torch(tmp_path: Path, kind: str) -> None:
    model = Recogniser(RecogniserConfig(4, BANDS, widths=(4, 6, 8, 10))).eval().half().float()
    frame = features(chirp(1), BANDS, FRAMES)
    values: Any = np.ascontiguousarray(frame[:, :, 0].T)
    made = stages(model, FRAMES, tmp_path / "stage", 3)
    for point, files in zip(model.points[1:], made, strict=True):
        values = inference.load(files[kind], source="values", target="map")(values)
        expected = model.before(to_features(frame[None]), point)[0].T.numpy()
        assert values.shape == expected.shape
        np.testing.assert_allclose(values, expected, atol=2e-3 * float(expected.max()))


@pytest.mark.parametrize("wrong", [{"widths": (8, 8)}, {"kernel": 4}])
def test_a_shape_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"widths|kernel"):
        RecogniserConfig(4, **wrong)


# The profile in the repository, through two processes.

MANIFEST = profiles.load("digits").manifest


@pytest.fixture(scope="module")
def address(own_cache: Path) -> Iterator[str]:
    with pair.server("digits") as found:
        yield found


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of every rate, depth and length that are read."""
    directory = tmp_path_factory.mktemp("sounds")
    for seed in range(4):
        (directory / f"{seed}.wav").write_bytes(wav(chirp(seed)))
    (directory / "4.wav").write_bytes(wav(tone(3.0, 700, 44100), 44100, channels=2))
    (directory / "5.wav").write_bytes(wav(tone(0.02, 700), bits=8))
    (directory / "6.wav").write_bytes(wav(np.zeros(800, np.float32)))
    return directory


def test_codes_are_far_smaller_than_features(address: str, sounds: Path) -> None:
    def sent(strategy: str, **settings: object) -> float:
        answers = pair.stream(address, sounds, strategy, settings)
        return sum(answer["bytes_up"] for answer in answers) / len(answers)

    deep = sent("deepcod", point="block-3", rate=1)
    assert deep < sent("deepcod", point="input", rate=1) < sent("raw") / 4


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
@pytest.mark.parametrize("point", ["input", "block-3"])
def test_the_profiles_runtimes_agree(point: str, runtime: str) -> None:
    profile = load("digits")
    present = {file.path for file in profile.manifest.files}
    bundle = Bundle(profile.manifest, profile.directory, present)
    device = registry.load("device.strategies", "deepcod").create(bundle)
    server = strategies(Serving(profile), ["deepcod"])["deepcod"]
    different = []
    for seed in range(8):
        symbols = []
        for each in ("numpy", runtime):
            plan = Plan("deepcod", {"point": point, "rate": 1, "runtime": each})
            query = next(device.infer(Frame(0, "0", chirp(seed), 0.0), plan))
            symbols.append(server.prepare(query, NOTHING).arrays["symbols"])
        different.append((symbols[0] != symbols[1]).mean())
    assert np.mean(different) <= 0.005


@pytest.mark.parametrize("strategy", sorted(MANIFEST.strategies))
def test_every_sound_gets_its_answer(strategy: str, address: str, sounds: Path) -> None:
    answers = pair.stream(address, sounds, strategy, in_flight=4)
    assert [answer["frame"] for answer in answers] == [f"{n}.wav" for n in range(7)]
    for answer in answers:
        assert (answer["error"], answer["degraded"]) == (None, None)
        assert answer["label"] in MANIFEST.classes
        assert (answer["source"] == "device") == (strategy == "local")
        assert (answer["bytes_up"] == 0) == (strategy == "local")


def test_what_is_no_sound_is_an_error_on_its_own(
    address: str, sounds: Path, tmp_path: Path
) -> None:
    (tmp_path / "0.wav").write_bytes(b"RIFF and nothing else")
    (tmp_path / "1.wav").write_bytes(wav(tone(11)))
    (tmp_path / "2.wav").symlink_to(sounds / "1.wav")
    answers = pair.stream(address, tmp_path, "raw")
    assert [answer["error"] is None for answer in answers] == [False, False, True]
    assert "no wav" in answers[0]["error"]
    assert "too long" in answers[1]["error"]


def test_without_a_server_the_device_still_recognises(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    with pair.server("digits") as own:
        alone = pair.stream(own, sounds, "local")
    command = [sys.executable, "-m", "device", "--server", own, "--source", str(sounds), "--json"]
    command += ["--strategy", "raw", "--deadline", "2000", "--patience", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert pair.agreement(answers, alone) == 1
    for answer in answers:
        assert answer["source"] == "device"
        assert answer["degraded"]


def test_a_folder_of_both_kinds_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(0.1)))
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8")
    command = [sys.executable, "-m", "device", "--server", "127.0.0.1:9", "--json"]
    done = subprocess.run(
        [*command, "--source", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "only one kind" in done.stderr
    assert not done.stdout


def test_the_profile_says_how_it_was_made() -> None:
    made = json.loads((profiles.PROFILES / "digits/profile.json").read_text())["made"]
    assert {"data", "command", "seed", "seconds", "hardware", "accuracy", "date"} <= set(made)
    assert made["accuracy"]["full"] > 0.97
