"""The training of the speech service, on tones in place of digits."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from common import profile as profiles
from common import registry
from common.sound import features
from device.bundle import Bundle
from device.strategy import Frame, Plan, Samples
from profiles.train import digits, plan_digits, publish
from profiles.train.__main__ import main
from profiles.train.digits import BANDS, FRAMES
from server.memory import NOTHING
from server.models.checkpoint import load_model
from server.serving import Serving, strategies
from tests.speech import chirp, tone, wav

TAKES = (0, 2, 5, 6, 44, 45, 49)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with seven takes of three digits."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in range(3):
        for take in TAKES:
            samples = tone(0.2 + 0.001 * take, 300 * (digit + 1))
            (folder / f"{digit}_ann_{take}.wav").write_bytes(wav(samples))
    (folder / "README.wav").write_bytes(b"no recording")
    return folder


def takes(spoken: digits.Spoken) -> set[int | None]:
    return {digits.take_of(name) for name in spoken.names}


def test_what_reports_and_what_chooses_is_never_trained_on(data: Path, tmp_path: Path) -> None:
    packed = tmp_path / "fsdd.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(data, "fsdd/recordings")
    for source in (data, packed):
        assert takes(digits.training([source])) == {5, 6, 44}
        assert takes(digits.choosing([source])) == {45, 49}
        assert takes(digits.load([source], digits.TEST)) == {0, 2}
    spoken = digits.training([packed])
    assert spoken.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert spoken.seen().shape == (9, BANDS, FRAMES, 1)


@pytest.mark.parametrize("sources", [[], ["empty"]])
def test_missing_data_says_what_to_give(sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Free Spoken Digit"):
        digits.training([tmp_path / each for each in sources])


def test_a_broken_recording_is_named(data: Path) -> None:
    (data / "1_ann_7.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"1_ann_7\.wav: this is no wav"):
        digits.training([data])


def test_augmentation_changes_what_it_may_and_is_repeatable(data: Path) -> None:
    spoken = digits.training([data])
    places = np.arange(4)
    one, again = (digits.augmented(spoken, places, np.random.default_rng(3)) for _ in range(2))
    other = digits.augmented(spoken, places, np.random.default_rng(4))
    assert one.shape == (4, BANDS, FRAMES, 1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_varied_sound_keeps_its_pitch_nearly() -> None:
    sound: Samples = tone(0.5, 800)
    clean = features(sound, BANDS, FRAMES)[:, FRAMES // 2, 0].argmax()
    for seed in range(8):
        varied = digits.varied(sound, np.random.default_rng(seed))
        assert varied.dtype == np.float32
        assert 0.8 * len(sound) < len(varied) < 1.5 * len(sound)
        seen = features(varied, BANDS, FRAMES).astype(int).sum(1)[:, 0]
        assert abs(int(seen.argmax()) - int(clean)) <= 3


def test_masks_are_black_and_few() -> None:
    full = np.full((BANDS, FRAMES, 1), 200, np.uint8)
    for seed in range(8):
        out = digits.masked(full, np.random.default_rng(seed))
        assert set(np.unique(out)) <= {0, 200}
        assert (out == 0).mean() < 0.4
    assert (full == 200).all()


def test_from_recordings_to_a_profile(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(publish, "PROFILES", tmp_path / "profiles")
    command = ["all", "digits", "--data", str(data), "--steps", "2", "--threads", "1"]
    assert main(command) == 0
    directory = tmp_path / "profiles" / "digits"
    loaded = profiles.load(directory)
    assert loaded.manifest.task == "listen"
    assert {"raw", "local", "deepcod"} <= set(loaded.manifest.strategies)
    for model in loaded.models.values():
        load_model(model.file, model.kind, model.config)
    made = json.loads((directory / "profile.json").read_text())["made"]
    assert "6 recordings" in made["accuracy"]["frames"]
    assert made["deepcod"]["held_out"].keys() == {
        f"{point}-{rate}" for point, rate in plan_digits.DEEPCOD.names()
    }
    check_codecs(loaded)


def check_codecs(loaded: profiles.Profile) -> None:
    """Symbols do not depend on what computes them, and the server makes an answer of them."""
    present = {file.path for file in loaded.manifest.files}
    bundle = Bundle(loaded.manifest, loaded.directory, present)
    device = registry.load("device.strategies", "deepcod").create(bundle)
    server = strategies(Serving(loaded), ["deepcod"])["deepcod"]
    frame = Frame(0, "0", chirp(1), 0.0)
    for point, rate in (("input", 1), ("input", 2), ("block-3", 1)):
        symbols = []
        for runtime in ("numpy", "onnx", "tflite"):
            params = {"point": point, "rate": rate, "runtime": runtime}
            work = server.prepare(next(device.infer(frame, Plan("deepcod", params))), NOTHING)
            symbols.append(work.arrays["symbols"])
            assert (symbols[-1] != symbols[0]).mean() <= 0.02
        (outcome,) = server.forward([work])
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)


def test_without_data_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path))
    assert main(["recogniser", "digits", "--threads", "1"]) == 2
    assert "Free Spoken Digit" in capsys.readouterr().err
