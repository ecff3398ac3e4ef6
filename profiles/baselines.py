"""Chooses the settings of what A-MOT is compared with: JPEG, WebP, SDT and ISR.

    python -m profiles.baselines signs --amend
    python -m profiles.baselines imagenette --data imagenette-train.tar --amend

Every setting of a grid answers calibration frames, through the device's strategy and the server's
in this process and without a wire. The best at each budget go into the profile: `budgets`, of raw
bytes in shares of the raw frame (sdt, isr), and `coded`, in coded bytes (jpeg, sdt, isr).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in profiles.train

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common import profile as profiles
from common import registry
from common.errors import OffboardError
from common.profile import Profile
from device.bundle import Bundle
from device.planner import STRATEGIES
from device.strategy import Frame, Plan
from device.strategy import Strategy as DeviceStrategy
from profiles.amend import amend
from profiles.calibrate import Talk, photographs
from profiles.train.photos import Photos
from server.serving import F32, Serving, strategies
from server.strategy import Strategy

FRAMES = 200
BATCH = 25
SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Budgets in raw bytes, as shares of the raw frame: A-MOT's."""
BYTES = (1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000, 8000, 10_000, 14_000)
"""Budgets in coded bytes."""
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
AREAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the frame's pixels that a small frame has."""

Params = dict[str, Any]


def grid(**choices: Sequence[Any]) -> list[Params]:
    """Every combination."""
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


def scale_of(area: float) -> float:
    """The scale of the sides that gives at most a share `area` of the pixels."""
    return 1.0 if area == 1 else int(1000 * area**0.5 - 2) / 1000  # a pixel is rounded up


RAW: Mapping[str, list[Params]] = {
    "sdt": grid(codec=["raw"], scale=[scale_of(a) for a in AREAS[:-2:2]], r2=[0.05, 0.1, 0.2, 0.3]),
    "isr": grid(codec=["raw"], scale=[scale_of(a) for a in AREAS]),
}
CODED: Mapping[str, list[Params]] = {
    "jpeg": grid(format=["jpeg", "webp"], scale=[0.35, 0.5, 0.7, 1.0], quality=[5, 10, 25, 50, 75]),
    "sdt": [
        *grid(scale=[0.35, 0.5], low_quality=[25, 60], r2=[0.1, 0.25]),
        *grid(scale=[0.7, 1.0], low_quality=[5, 15], r2=[0.1, 0.25]),
    ],
    "isr": grid(scale=[0.35, 0.5, 0.7], quality=[10, 25, 50, 75]),
}
KEYS = {"jpeg": ("format",)}
"""Parameters by whose values a strategy's settings are chosen apart."""


@dataclass(frozen=True)
class Trial:
    """One setting on n frames: right in each round, confidence after round one, bytes of each.

    Where there is one round, the second repeats the first and costs nothing.
    """

    params: Params
    right: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int64]

    def choices(self) -> Iterator[Params]:
        """The setting at every threshold, with its mean `cost` in bytes and its `accuracy`."""
        two = bool(self.sizes[:, 1].any())
        for threshold in THRESHOLDS if two else (0.0,):
            again = self.confidence < threshold
            right = np.where(again, self.right[:, 1], self.right[:, 0])
            cost = self.sizes[:, 0] + again * self.sizes[:, 1]
            yield {
                **self.params,
                **({"threshold": threshold} if two else {}),
                "cost": float(cost.mean()),
                "accuracy": round(float(right.mean()), 4),
            }


class Remembering(Serving):
    """Answers the batch that it classified before last from memory: settings share round one."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._known: dict[bytes, tuple[F32, F32]] = {}

    def classify(self, pixels: torch.Tensor) -> tuple[F32, F32]:
        """As Serving's."""
        key = hashlib.blake2b(pixels.numpy().tobytes()).digest()
        if key not in self._known:
            self._known = dict([*self._known.items()][-1:])
            self._known[key] = super().classify(pixels)
        return self._known[key]


def trials(
    device: DeviceStrategy, server: Strategy, photos: Photos, settings: Sequence[Params]
) -> list[Trial]:
    """Every one of `settings` on all `photos`."""
    found: list[list[tuple[list[bool], float, list[int]]]] = [[] for _ in settings]
    starts = range(0, len(photos), BATCH)
    for start in tqdm(starts, desc=f"{len(settings)} settings", mininterval=5):
        part = range(start, min(start + BATCH, len(photos)))
        frames = [Frame(i, str(i), np.array(photos.frames[i]), 0.0) for i in part]
        for params, rows in zip(settings, found, strict=True):
            talks = [Talk(device.infer(frame, Plan("", params))) for frame in frames]
            answer(server, talks)
            for talk, label in zip(talks, photos.labels[start:], strict=False):
                right = [bool(said.argmax() == label) for said in talk.said]
                sizes = [sum(len(t.data) for t in q.tensors.values()) for q in talk.asked]
                one = len(right) == 1
                rows.append(
                    (
                        [right[0], right[-1]],
                        float(talk.said[0].max()),
                        [sizes[0], 0 if one else sizes[1]],
                    )
                )
    return [
        Trial(params, *(np.array(column) for column in zip(*rows, strict=True)))
        for params, rows in zip(settings, found, strict=True)
    ]


def answer(server: Strategy, talks: Sequence[Talk]) -> None:
    """Answer all that is asked, in one batch per key, until nothing is."""
    for talk in talks:
        talk.query = next(talk.conversation)
    while asking := [talk for talk in talks if talk.query is not None]:
        batches: dict[Any, list[tuple[Talk, Any]]] = {}
        for talk in asking:
            assert talk.query is not None
            work = server.prepare(talk.query, talk)
            batches.setdefault(work.key, []).append((talk, work))
        for batch in batches.values():
            outcomes = server.forward([work for _, work in batch])
            for (talk, _), outcome in zip(batch, outcomes, strict=True):
                talk.answer(outcome)


def ladder(found: Sequence[Params], limits: Sequence[float], unit: float) -> list[Params]:
    """The most accurate setting within each of `limits` times `unit` bytes, of equals the dearest.

    On few frames many are equal, and what sends more is the safer choice. A limit that nothing
    else fits into than into the one before is left out.
    """
    rows: list[Params] = []
    last: Params | None = None
    for limit in limits:
        within = [choice for choice in found if choice["cost"] <= limit * unit + 1e-6]
        best = max(within, key=lambda c: (c["accuracy"], c["cost"]), default=None)
        if best is None or best is last:
            continue
        last = best
        row = {key: value for key, value in best.items() if key not in ("cost", "codec")}
        name = "budget" if unit > 1 else "bytes"
        rows.append({name: limit, **row, "cost": round(best["cost"] / unit, 4)})
    return rows


def chosen(
    profile: Profile, photos: Photos, only: Sequence[str], quality: int
) -> dict[str, dict[str, list[Params]]]:
    """The parameters `budgets` and `coded` of the strategies named in `only`."""
    serving = Remembering(profile)
    served = strategies(serving, only)
    bundle = Bundle(profile.manifest, profile.directory)
    shape = profile.manifest.input
    whole = shape.height * shape.width * shape.channels
    made: dict[str, dict[str, list[Params]]] = {}
    for name in only:
        device = registry.load(STRATEGIES, name).create(bundle)
        made[name] = {}
        if name in RAW:
            tried = trials(device, served[name], photos, RAW[name])
            found = [choice for trial in tried for choice in trial.choices()]
            made[name]["budgets"] = ladder(found, SHARES, whole)
        settings = CODED[name]
        if name == "sdt":  # its patches are coded as A-MOT's are
            settings = [{**params, "quality": quality} for params in settings]
        tried = trials(device, served[name], photos, settings)
        found = [choice for trial in tried for choice in trial.choices()]
        kinds = {tuple(c[key] for key in KEYS.get(name, ())): None for c in found}
        made[name]["coded"] = [
            row
            for kind in kinds
            for row in ladder(
                [c for c in found if tuple(c[key] for key in KEYS.get(name, ())) == kind], BYTES, 1
            )
        ]
    return made


def middle(rows: Sequence[Params]) -> Params:
    """The profile's own setting: the cheapest within a point of the most accurate of `rows`."""
    enough = max(row["accuracy"] for row in rows) - 0.01
    row = next(row for row in rows if row["accuracy"] >= enough)
    return {k: v for k, v in row.items() if k not in ("bytes", "budget", "cost", "accuracy")}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="profiles.baselines", description=__doc__)
    made.add_argument("profile", help="its name or directory")
    made.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PATH",
        help="tar files or folders whose held-out training photographs to use",
    )  # fmt: skip
    made.add_argument("--only", nargs="+", choices=sorted(CODED), default=sorted(CODED))
    made.add_argument("--frames", type=int, default=FRAMES, help=f"at most ({FRAMES})")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--amend", action="store_true", help="write the outcome to profile.json")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 2 with one line that says what was wrong."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        profile = profiles.load(args.profile)
        photos = photographs(profile, args.data, args.frames)
        quality = profile.manifest.params("amot")["quality"]
        made = chosen(profile, photos, args.only, quality)
    except (ValueError, OffboardError) as error:
        print(f"baselines: {error}", file=sys.stderr)
        return 2
    for name, tables in made.items():
        for kind, rows in tables.items():
            print(f"{name}, {kind}:")
            for row in rows:
                print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    if args.amend:
        # The user's defaults of JPEG stay as they are: its quality is a matter of taste.
        own = {
            name: {} if name == "jpeg" else middle(tables["coded"]) for name, tables in made.items()
        }
        given = sys.argv[1:] if argv is None else argv
        # A record says what was run, not where this machine keeps its files.
        command = " ".join(["python -m profiles.baselines", *(Path(word).name for word in given)])
        amend(
            profile.directory,
            strategies={name: {**own[name], **tables} for name, tables in made.items()},
            made={"baselines": {"frames": len(photos), "command": command}},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
