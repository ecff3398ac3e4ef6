"""What every stage of a profile's training is given, and the record it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.train.loop import Budget


@dataclass(frozen=True)
class Job:
    """One run of a stage: data, folder of intermediate files, seed, budget (None: the default)."""

    data: tuple[Path, ...]
    out: Path
    seed: int
    budget: Budget | None
    resume: bool

    def minutes(self, default: float) -> Budget:
        """The budget given, or ``default`` minutes."""
        return self.budget or Budget(minutes=default)

    def photos(self) -> tuple[Path, ...]:
        """The data sets given; ValueError if there is none."""
        if not self.data:
            raise ValueError(
                "this profile is trained on photographs: give --data with tar files or folders"
            )
        return self.data

    def checkpoint(self, stage: str) -> Path:
        """Where ``stage`` keeps its state while it runs."""
        return self.out / f"{stage}.ckpt"

    def weights(self, stage: str) -> Path:
        """Where ``stage`` leaves its weights."""
        return self.out / f"{stage}.safetensors"

    def record(self, stage: str, seconds: float, **figures: Any) -> None:
        """Note how long ``stage`` took and what it measured."""
        entry = {"seconds": round(seconds), "seed": self.seed, **figures}
        (self.out / f"{stage}.json").write_text(json.dumps(entry, indent=1) + "\n")

    def recorded(self, stage: str) -> dict[str, Any]:
        """What ``record`` noted for ``stage``; empty if it has not run."""
        path = self.out / f"{stage}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


Stage = Callable[[Job], None]
