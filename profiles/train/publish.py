"""Puts trained weights into a profile directory and writes its ``profile.json``."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiles.train.evaluate import Choice
from profiles.train.job import Job
from server.models.mae import MAEConfig
from server.models.vit import ViTConfig

PROFILES = Path(__file__).resolve().parents[1]
STAGES = ("teacher", "mae", "vit", "local")


@dataclass(frozen=True)
class Made:
    """What the profile says of its making: the data in words, the command, measured accuracy."""

    data: str
    command: str
    accuracy: Mapping[str, Any]


def publish(
    job: Job,
    name: str,
    classes: tuple[str, ...],
    vit: ViTConfig,
    mae: MAEConfig,
    amot: Choice,
    made: Made,
    quality: int,
    directory: Path | None = None,
) -> Path:
    """Copy weights and device model of ``job`` to the profile ``name``; returns its directory.

    ``quality``: of A-MOT's mosaic JPEG, 1-100.

    Raises OSError if a stage has not left its file yet.
    """
    target = directory or PROFILES / name
    files = {
        "weights/vit.safetensors": job.weights("vit"),
        "weights/mae.safetensors": job.weights("mae"),
        "device/local.onnx": job.out / "local.onnx",
    }
    for place, source in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / place)
    local = target / "device/local.onnx"
    records = {stage: job.recorded(stage) for stage in STAGES}
    profile = {
        "format": 1,
        "name": name,
        "task": "classify",
        "classes": list(classes),
        "input": {"height": 224, "width": 224, "channels": 3, "patch": 16},
        "models": {
            kind: {
                "kind": kind,
                "file": f"weights/{kind}.safetensors",
                "sha256": digest(target / f"weights/{kind}.safetensors"),
                "config": asdict(config),
            }
            for kind, config in (("vit", vit), ("mae", mae))
        },
        "strategies": {
            "amot": {
                "r1": amot.r1,
                "r2": amot.r2,
                "threshold": amot.threshold,
                "codec": "mosaic",
                "quality": quality,
            },
            "jpeg": {"quality": 75, "scale": 1.0},
            "raw": {"codec": "zstd"},
            "local": {"model": "local", "file": "device/local.onnx"},
        },
        "device": {
            "files": [
                {
                    "path": "device/local.onnx",
                    "sha256": digest(local),
                    "size": local.stat().st_size,
                }
            ]
        },
        "made": {
            "data": made.data,
            "command": made.command,
            "seed": job.seed,
            "seconds": {stage: entry["seconds"] for stage, entry in records.items() if entry},
            "hardware": hardware(),
            "accuracy": dict(made.accuracy),
            "date": datetime.now(UTC).date().isoformat(),
        },
    }
    (target / "profile.json").write_text(json.dumps(profile, indent=2) + "\n")
    return target


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hardware() -> str:
    """The machine in a few words."""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
