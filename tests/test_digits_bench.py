"""The bench of the speech service: what it runs, and what coders give back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import digits
from common import profile as profiles
from common.sound import to_int16
from device import sound
from tests.speech import tone


def test_every_strategy_of_the_profile_is_measured() -> None:
    manifest = profiles.load("digits").manifest
    runs = list(digits.configurations(manifest))
    assert {strategy for _, strategy, _ in runs} == set(manifest.strategies)
    assert len({name for name, _, _ in runs}) == len(runs)


def test_coders_give_back_what_was_said(tmp_path: Path) -> None:
    samples = to_int16(tone(0.5, 400))
    sizes = []
    for name, coder in digits.coders():
        size, heard = coder(samples)
        sizes.append(size)
        assert heard.dtype == np.int16
        if name.startswith("Opus"):
            continue  # has a delay of its own
        error = np.square(heard[: len(samples)].astype(float) - samples).mean()
        assert error < 1e-3 * np.square(samples.astype(float)).mean(), name
    assert sizes[1] == sizes[0] // 2
    digits.write(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(sound.load(tmp_path / "a.wav"), tone(0.5, 400), atol=1e-4)


def test_missing_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digits.main(["--data", str(tmp_path)]) == 2
    assert "Free Spoken Digit" in capsys.readouterr().err
