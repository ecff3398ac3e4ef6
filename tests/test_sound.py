"""Sounds: wav files to samples, samples to features, and what is no sound."""

from __future__ import annotations

import io
import math
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common import sound as common
from common.errors import ConfigError
from common.profile import Input, Manifest
from common.sound import FFT, HOP, LONGEST, RANGE, RATE, WINDOW, cut, features, filters
from device import content, sound
from device.source import open_source
from device.strategy import Frame
from tests.speech import F32, tone, wav

SIZE = Input(height=32, width=80, channels=1, patch=1)


# Files.


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.008), (16, 6e-5)])
def test_a_wav_gives_its_samples(bits: int, error: float, channels: int, tmp_path: Path) -> None:
    data = wav(tone(0.2), bits=bits, channels=channels)
    (tmp_path / "a.wav").write_bytes(data)
    for samples in (sound.load(data), sound.load(tmp_path / "a.wav")):
        assert samples.dtype == np.float32
        assert samples.shape == (1600,)
        np.testing.assert_allclose(samples, tone(0.2), atol=error)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate: int) -> None:
    samples = sound.load(wav(tone(0.5, 500, rate), rate))
    assert len(samples) == 4000
    inside = slice(400, 3600)  # the ends ring: there the sound begins and stops
    np.testing.assert_allclose(samples[inside], tone(0.5, 500)[inside], atol=0.01)


def test_what_a_lower_rate_cannot_hold_is_gone() -> None:
    samples = sound.load(wav(tone(0.5, 6000, 48000), 48000))
    assert np.abs(samples[400:3600]).max() < 0.01


def test_two_channels_are_averaged() -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.tile(np.array([8192, -4096], "<i2"), 100).tobytes())
    assert np.allclose(sound.load(stream.getvalue()), 0.0625)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"this is no sound", "no wav"),
        (b"RIFF", "no wav"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "no wav"),
        (wav(tone(0.1))[:-100], "cut short"),
        (wav(tone(0.1))[:30], "no wav"),
        (wav(tone(0)), "no sound"),
        (wav(tone(LONGEST / RATE + 1)), "at most 10 s"),
        (wav(tone(0.1), bits=32), "8 or 16"),
        (wav(tone(0.1), channels=4), "one or two"),
        (wav(tone(0.1), rate=1000), "1000 Hz"),
    ],
)
def test_what_is_no_sound_says_why(data: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sound.load(data)


# Features.


def slowly(samples: F32, bands: int, frames: int) -> npt.NDArray[np.uint8]:
    """The features, one number at a time."""
    piece = cut(samples, frames).astype(np.float64)
    mel = [i * 2595 * math.log10(1 + RATE / 2 / 700) / (bands + 1) for i in range(bands + 2)]
    edges = [700 * (10 ** (m / 2595) - 1) for m in mel]
    found = np.zeros((bands, frames))
    for t in range(frames):
        spectrum = []
        for k in range(FFT // 2 + 1):
            total = 0j
            for n in range(WINDOW):
                hann = 0.5 - 0.5 * math.cos(2 * math.pi * n / WINDOW)
                turn = -2 * math.pi * k * n / FFT
                total += piece[t * HOP + n] * hann * complex(math.cos(turn), math.sin(turn))
            spectrum.append(abs(total) ** 2)
        for b in range(bands):
            for k, power in enumerate(spectrum):
                hertz = k * RATE / FFT
                up = (hertz - edges[b]) / (edges[b + 1] - edges[b])
                down = (edges[b + 2] - hertz) / (edges[b + 2] - edges[b + 1])
                found[b, t] += power * max(0.0, min(up, down))
    decibels = 10 * np.log10(np.maximum(found / found.max(), 1e-30))
    return np.rint(np.clip(decibels / RANGE + 1, 0, 1) * 255).astype(np.uint8)[:, :, None]


def test_features_are_those_of_a_slow_reference() -> None:
    noise = np.random.default_rng(0).standard_normal(500).astype(np.float32) * 0.1
    samples = noise + tone(500 / RATE, 900)
    found, expected = features(samples, 8, 4), slowly(samples, 8, 4)
    assert found.shape == (8, 4, 1)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert found.max() == 255


def test_a_tone_lights_its_band_at_any_level() -> None:
    loud, quiet = (features(tone(0.8, 1000, level=level), 32, 80) for level in (0.5, 0.005))
    assert np.abs(loud.astype(int) - quiet.astype(int)).max() <= 1
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    centres = (filters(32) * bins[:, None]).sum(0) / filters(32).sum(0)
    assert abs(centres[loud[:, 40, 0].argmax()] - 1000) < 80


def test_silence_is_black() -> None:
    assert not features(np.zeros(1, np.float32), 32, 80).any()
    assert not features(np.zeros(LONGEST, np.float32), 32, 80).any()


@pytest.mark.parametrize("before", [0.0, 0.1, 1.0, 4.0])
def test_silence_around_a_sound_makes_no_difference(before: float) -> None:
    silence = np.zeros(round(before * RATE), np.float32)
    padded = np.concatenate((silence, tone(0.4), np.zeros(999, np.float32)))
    np.testing.assert_array_equal(features(padded, 32, 80), features(tone(0.4), 32, 80))


def test_of_a_long_sound_the_loudest_stretch_stays() -> None:
    samples = np.concatenate((tone(1.0, level=0.1), tone(0.8, 1500), tone(1.0, level=0.1)))
    piece = cut(samples, 80)
    assert len(piece) == 79 * HOP + WINDOW
    assert float(np.square(piece).sum()) >= 0.99 * float(np.square(tone(0.8, 1500)).sum())


def test_a_short_sound_is_in_the_middle() -> None:
    found = np.flatnonzero(cut(tone(0.1), 80))
    assert abs((found[0] + found[-1]) / 2 - len(cut(tone(0.1), 80)) / 2) <= HOP


def test_samples_survive_sixteen_bits_and_nearly_eight() -> None:
    samples = tone(0.2, level=0.9)
    again = common.expand(common.to_int16(samples))
    np.testing.assert_allclose(again, samples, atol=2e-5)
    np.testing.assert_array_equal(common.to_int16(again), common.to_int16(samples))
    rough = common.expand(common.compress(samples))
    assert np.square(rough - samples).sum() < 1e-3 * np.square(samples).sum()
    assert rough.dtype == np.float32


# Through the device.


def manifest(task: str = "listen") -> Manifest:
    return Manifest("digits", task, ("zero", "one"), SIZE, {"raw": {}})


def test_the_reader_and_the_view_of_a_sound() -> None:
    read, view = content.reader(manifest()), content.view(manifest())
    data = wav(tone(0.3))
    frame = Frame(0, "0", read(data), 0.0)
    assert frame.samples.shape == (2400,)
    np.testing.assert_array_equal(view(frame), features(sound.load(data), 32, 80))
    np.testing.assert_array_equal(read(frame.samples), frame.samples)
    assert not view(Frame(0, "", content.blank(manifest()), 0.0)).any()
    np.testing.assert_array_equal(content.signal(manifest())(frame), view(frame)[:, :, 0].T)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 9), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros(LONGEST + 1, np.float32),
    ],
)
def test_an_array_that_is_no_sound_is_refused(array: F32) -> None:
    with pytest.raises(ValueError, match="a sound is float32"):
        content.reader(manifest())(array)


@pytest.mark.parametrize("ask", [content.reader, content.view, content.blank])
def test_an_unknown_task_says_so(ask: object) -> None:
    with pytest.raises(ConfigError, match="'smell'"):
        ask(manifest("smell"))  # type: ignore[operator]


def test_a_folder_of_sounds_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("2.wav", "b/1.WAV"):
        (tmp_path / name).write_bytes(wav(tone(0.1)))
    (tmp_path / "notes.txt").write_text("no sound")
    shots = list(open_source(str(tmp_path)).shots())
    assert [shot.name for shot in shots] == ["2.wav", "b/1.WAV"]
    assert shots[0].frame(content.reader(manifest())).samples.shape == (800,)
    assert len(list(open_source(str(tmp_path / "*.wav")).shots())) == 1


def test_pictures_among_sounds_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(0.1)))
    (tmp_path / "b.png").write_bytes(b"")
    for text in (str(tmp_path), str(tmp_path / "*")):
        with pytest.raises(ConfigError, match="only one kind"):
            open_source(text)
