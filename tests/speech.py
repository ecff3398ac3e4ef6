"""A profile of sounds small enough for tests: the layout of `digits`, random weights, and tones.

profile = load(tiny_speech(tmp_path))     # common.profile.load
(tmp_path / "a.wav").write_bytes(wav(tone(0.3)))
"""

from __future__ import annotations

import io
import json
import wave
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.profile import FORMAT
from common.sound import RATE

F32 = npt.NDArray[np.float32]
CLASSES = ("hum", "beep", "hiss")
BANDS, FRAMES = 16, 32


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE, level: float = 0.5) -> F32:
    """A sine, float32 [n]."""
    at = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def chirp(seed: int = 0) -> F32:
    """A quarter of a second that rises or falls, with noise: another one for every seed."""
    random = np.random.default_rng(seed)
    low, high = random.uniform(100, 3000, 2)
    at = np.arange(RATE // 4) / RATE
    swept = np.sin(2 * np.pi * (low + (high - low) * 2 * at) * at)
    return np.asarray(0.5 * swept + 0.02 * random.standard_normal(len(at)), np.float32)


def wav(samples: F32, rate: int = RATE, bits: int = 16, channels: int = 1) -> bytes:
    """A file of `samples` [n], the same in every channel; 32 bits are no format that is read."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        each = np.repeat(samples, channels)
        if bits == 8:
            file.writeframes(np.rint(each * 127 + 128).astype(np.uint8).tobytes())
        else:
            file.writeframes(np.rint(each * 32767).astype("<i2").tobytes() * (bits // 16))
    return stream.getvalue()


def tiny_speech(directory: Path, seed: int = 0) -> Path:
    """Make the profile "tiny-speech" in `directory` / "tiny-speech" and return that path."""
    import torch

    from common import columns
    from profiles.amend import amend
    from profiles.export_deepcod import numpy_file
    from profiles.export_recogniser import recogniser_onnx, stages
    from server.models.checkpoint import save_weights
    from server.models.deepcod import Rates, RatesConfig
    from server.models.recogniser import Recogniser, RecogniserConfig

    root, made = directory / "tiny-speech", directory / "made"
    for each in (root, made):
        each.mkdir(parents=True)
    config = RecogniserConfig(len(CLASSES), BANDS, widths=(8, 8, 8, 8), kernel=3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Recogniser(config).eval()
        torch.nn.init.normal_(model.head.weight, std=3.0)  # so that sounds differ in class
        codec = {"channels": 4, "kernel": 4, "levels": 4, "widths": (8, 4, 4)}
        sizes = ({"size": (FRAMES,), "inputs": BANDS}, {"size": (FRAMES,), "inputs": 8})
        points = ("input", "block-1")
        codecs = RatesConfig(tuple({**codec, **size} for size in sizes), points)
        rates = Rates(codecs)
        symbols = torch.randint(0, 4, (20, 4, FRAMES // 4)).numpy().astype(np.uint8)
    save_weights(model, made / "recogniser.safetensors")
    save_weights(rates, made / "deepcod.safetensors")
    recogniser_onnx(model, FRAMES, made / "local.onnx")
    (stage,) = stages(model, FRAMES, made / "stage", 1)
    for point in points:
        coded = columns.trained(symbols, 4)
        numpy_file(rates.codec(1, point), coded, made / f"{point}.npz", frames=point == "input")
    offered = {
        "backbone": "recogniser",
        "points": [
            {"name": "input", "rates": [{"npz": "device/input.npz"}]},
            {"name": "block-1", "rates": [{"npz": "device/block-1.npz"}],
             "stage": {kind: f"device/{path.name}" for kind, path in stage.items()}},
        ],
    }  # fmt: skip
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": "tiny-speech",
        "task": "listen",
        "classes": CLASSES,
        "input": {"height": BANDS, "width": FRAMES, "channels": 1, "patch": 1},
        "models": {},
        "strategies": {},
        "device": {"files": []},
        "made": {"seed": seed},
    }
    (root / "profile.json").write_text(json.dumps(document))
    amend(
        root,
        models={
            "recogniser": (made / "recogniser.safetensors", asdict(config)),
            "deepcod": (made / "deepcod.safetensors", asdict(codecs)),
        },
        strategies={
            "raw": {"codec": "zstd"},
            "local": {"file": "device/local.onnx"},
            "deepcod": offered,
        },
        files={
            f"device/{name}": made / name
            for name in (
                "local.onnx",
                "input.npz",
                "block-1.npz",
                *(p.name for p in stage.values()),
            )
        },
    )
    return root
