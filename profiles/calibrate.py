"""Calibration of A-MOT: how often which second ratio suffices, and the best settings per budget.

    python -m profiles.calibrate signs --report signs.md --plots docs
    python -m profiles.calibrate imagenette --data imagenette-train.tar --amend

Every calibration frame goes through the device's strategy and the server's, in this process and
without a wire: sampled, coded, decoded, recovered and answered as served, at every first and
second ratio. The frames were never trained on and are never evaluated on: scenes rendered from
calibration seeds, or the training photographs held out. Outcomes are kept in the user's cache, so
an interrupted run goes on where it stopped and a report is redone without a pass.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in profiles.train

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common import profile as profiles
from common.codec import encode
from common.errors import OffboardError
from common.messages import Query, Result
from common.patches import Indices
from common.profile import Profile
from device.bundle import Bundle
from device.strategies import amot as device_amot
from device.strategy import Conversation, Frame, Plan
from profiles import figures, sweep
from profiles.amend import amend
from profiles.sweep import Outcomes
from profiles.train import scenes, signs
from profiles.train.__main__ import PLANS
from profiles.train.photos import Photos, cache_dir, load, split_off
from server.serving import F32, U8, Serving
from server.strategies import amot as server_amot
from server.strategy import Outcome, Strategy

NAME = device_amot.NAME
SEEDS = signs.CALIBRATION[100_000:]
"""Of the scenes; the first seeds of the range chose weights and settings in training."""
FRAMES = 1000
FIRSTS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RATIOS = tuple(round(0.05 * step, 2) for step in range(11))
BUDGETS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Mean shares of the patches that a setting is chosen for."""
CODED = 100
"""Frames that the bytes of a patch are the mean of."""
SETTING = ("r1", "r2", "threshold")
RECOVERY = "mae"
"""Where the profile says nothing."""
CHOSEN = (*SETTING, "slo", "budgets", "recoveries", "budget", "slo_objective")
"""A-MOT's parameters that its outcomes do not depend on: calibration makes or varies them."""


class Once(Serving):
    """Computes a batch once that comes again at once: round one, the same for every r2."""

    _recovered: tuple[bytes, torch.Tensor] | None = None
    _classified: tuple[torch.Tensor, tuple[F32, F32]] | None = None

    def recover(self, patches: Sequence[U8], indices: Sequence[Indices]) -> torch.Tensor:
        """As Serving's."""
        key = b"".join([part.tobytes() for part in patches] + [part.tobytes() for part in indices])
        if self._recovered is None or self._recovered[0] != key:
            self._recovered = (key, super().recover(patches, indices))
        return self._recovered[1]

    def classify(self, pixels: torch.Tensor) -> tuple[F32, F32]:
        """As Serving's."""
        if self._classified is None or self._classified[0] is not pixels:
            self._classified = (pixels, super().classify(pixels))
        probabilities, attention = self._classified[1]
        return probabilities.copy(), attention.copy()  # theirs to write to


@dataclass
class Talk:
    """A frame's conversation with the server; the server's memory of the frame, too.

    `query`: not answered yet, None at the end. `asked`, `said`: queries answered and the
    probabilities float32 [classes] of each.
    """

    conversation: Conversation
    query: Query | None = None
    asked: list[Query] = field(default_factory=list)
    said: list[F32] = field(default_factory=list)
    remembered: Any = None

    def recall(self, id: int) -> Any:
        """What round one left."""
        return self.remembered

    def answer(self, outcome: Outcome) -> None:
        """Hand the outcome of `query` to the device, which may ask again."""
        assert self.query is not None
        self.asked.append(self.query)
        self.said.append(outcome.probabilities)
        self.remembered = outcome.remember
        tensors = {"probabilities": encode(outcome.probabilities)}
        try:
            self.query = self.conversation.send(Result("server", tensors, outcome.wants, id=1))
        except StopIteration:
            self.query = None


class Pair:
    """A-MOT's device and server for a profile, in one process."""

    def __init__(self, profile: Profile, device: str = "cpu") -> None:
        self.patches = profile.manifest.input.patches
        self._device = device_amot.create(Bundle(profile.manifest, profile.directory))
        self.server: Strategy = server_amot.create(Once(profile, device))

    def open(self, frames: Sequence[Frame], **params: Any) -> list[Talk]:
        """Begin with every frame; nothing is answered yet."""
        talks = [Talk(self._device.infer(frame, Plan(NAME, params))) for frame in frames]
        for talk in talks:
            talk.query = next(talk.conversation)
        return talks

    def turn(self, talks: Sequence[Talk]) -> None:
        """Answer what is asked, in one batch per key."""
        works: dict[Any, list[tuple[Talk, Any]]] = {}
        for talk in talks:
            if talk.query is not None:
                work = self.server.prepare(talk.query, talk)
                works.setdefault(work.key, []).append((talk, work))
        for batch in works.values():
            outcomes = self.server.forward([work for _, work in batch])
            for (talk, _), outcome in zip(batch, outcomes, strict=True):
                talk.answer(outcome)


def photographs(profile: Profile, data: Sequence[Path], count: int) -> Photos:
    """`count` frames to calibrate on, or as many as there are.

    Raises ValueError: no photographs, or no data given for a profile of photographs.
    """
    if not data:
        if profile.manifest.classes != signs.CLASSES:
            raise ValueError(f"{profile.name} is calibrated on photographs: give --data")
        return scenes.load(SEEDS[:count])
    every = load(data, "train")
    held = split_off(every)[1]
    # Photographs lie sorted by class: shuffled, the first ones are of all classes.
    return every.take(np.random.default_rng(0).permutation(held)[:count])


def outcomes_of(
    pair: Pair, photos: Photos, firsts: Sequence[float], ratios: Sequence[float], kept: Path,
    batch: int = 25,
) -> Outcomes:  # fmt: skip
    """The outcomes of all `photos`.

    The folder `kept` has those known in a file for each first ratio, written after every batch.
    """
    kept.mkdir(parents=True, exist_ok=True)
    each = [_outcomes_at(pair, photos, r1, ratios, kept / f"{r1:g}.npz", batch) for r1 in firsts]
    return Outcomes(
        tuple(firsts),
        tuple(ratios),
        np.concatenate([part.confidence for part in each], axis=1),
        np.concatenate([part.right for part in each], axis=1),
    )


def _outcomes_at(
    pair: Pair, photos: Photos, r1: float, ratios: Sequence[float], kept: Path, batch: int
) -> Outcomes:
    done = Outcomes(
        (r1,), tuple(ratios), np.zeros((0, 1), np.float32), np.zeros((0, 1, len(ratios)), np.bool_)
    )
    if kept.exists():
        with np.load(kept) as stored:
            done = replace(done, confidence=stored["confidence"], right=stored["right"])
    with tqdm(total=len(photos), initial=len(done), desc=f"r1 {r1:g}", mininterval=5) as bar:
        while len(done) < len(photos):
            part = range(len(done), min(len(done) + batch, len(photos)))
            confidence, right = passes(pair, photos, part, done)
            done = replace(
                done,
                confidence=np.concatenate((done.confidence, confidence)),
                right=np.concatenate((done.right, right)),
            )
            aside = kept.with_suffix(".part.npz")
            np.savez(aside, confidence=done.confidence, right=done.right)
            aside.replace(kept)
            bar.update(len(part))
    return done.take(slice(len(photos)))


def passes(
    pair: Pair, photos: Photos, part: range, grid: Outcomes
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Confidence [n, F] and right [n, F, R] of the frames in `part`."""
    frames = list(_frames(photos, part))
    labels = photos.labels[part.start : part.stop]
    confidence = np.zeros((len(part), len(grid.firsts)), np.float32)
    right = np.zeros((len(part), len(grid.firsts), len(grid.ratios)), np.bool_)
    for first, r1 in enumerate(grid.firsts):
        room = range(len(grid.room(r1)))
        # Round one of every ratio before any round two: it is computed once.
        talks = {
            i: pair.open(frames, r1=r1, r2=grid.ratios[i], threshold=sweep.CERTAIN) for i in room
        }
        for asking in talks.values():
            pair.turn(asking)
        for second, asking in talks.items():
            pair.turn(asking)
            said = np.stack([talk.said[-1] for talk in asking])
            right[:, first, second] = said.argmax(axis=1) == labels
        right[:, first, len(room) :] = right[:, first, room[-1], None]
        confidence[:, first] = [talk.said[0].max() for talk in talks[0]]
    return confidence, right


def _frames(photos: Photos, part: range) -> Iterator[Frame]:
    for index in part:
        yield Frame(index, str(index), np.array(photos.frames[index]), 0.0)


def coded_bytes(pair: Pair, photos: Photos, params: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean bytes of a patch of round one and of round two by codec, with the setting `params`."""
    frames = list(_frames(photos, range(min(CODED, len(photos)))))
    found = {}
    for codec in ("mosaic", "raw", "lz4", "zstd"):
        talks = pair.open(frames, **params, codec=codec)
        pair.turn(talks)
        pair.turn(talks)
        sizes: list[float] = []
        for step, ratio in ((0, "r1"), (1, "r2")):
            coded = [len(t.asked[step].tensors["patches"].data) for t in talks if t.asked[step:]]
            count = max(1, round(params[ratio] * pair.patches)) * len(coded)
            sizes.append(round(sum(coded) / count, 1) if coded else sizes[0])
        found[codec] = sizes
    return found


def kept_at(profile: Profile, data: Sequence[Path], ratios: Sequence[float]) -> Path:
    """The folder of the outcomes of a profile made by `bared`: by what they depend on."""
    params = dict(profile.manifest.params(NAME))
    used = {"vit", "mae", *map(str, params.values())}
    weights = [model.sha256 for model in profile.models.values() if model.kind in used]
    frames = [str(path.resolve()) for path in data] or [str(SEEDS.start)]
    what = json.dumps([profile.name, params, sorted(weights), frames, ratios])
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return cache_dir() / "calibration" / f"{profile.name}-{digest}"


def parameters(outcomes: Outcomes, budget: float) -> dict[str, Any]:
    """The profile's parameters of A-MOT, chosen on all frames; those of `budget` are its own.

    A row's setting is MOT's; "adaptive" has the first ratio and threshold that are best where the
    second ratio is solved for, and each of these first ratios has its table. A row's accuracy is
    that of settings chosen on the other half of the frames. Raises ValueError if no setting stays
    within `budget`.
    """
    rows: list[dict[str, Any]] = []
    for limit in sorted({*BUDGETS, budget}):
        setting, scored = sweep.mot(outcomes, limit), sweep.crossed(outcomes, limit, sweep.mot)
        if setting is not None and scored is not None:
            adapted = sweep.amot(outcomes, limit) or setting
            rows.append({
                "budget": limit,
                "r1": setting.r1,
                "r2": setting.ratios[0],
                "threshold": setting.threshold,
                "accuracy": round(scored.accuracy, 4),
                "adaptive": {"r1": adapted.r1, "threshold": adapted.threshold},
            })  # fmt: skip
    own = next((row for row in rows if row["budget"] == budget), None)
    if own is None:
        raise ValueError(f"no setting sends at most {budget:.0%} of the patches: add a smaller r1")
    tables = []
    for r1 in sorted({own["r1"], *(row["adaptive"]["r1"] for row in rows)}):
        counts, p = sweep.table(outcomes, r1)
        # Cut, not rounded: a column must not come to sum to more than 1.
        cut = np.floor(p * 1e4 + 1e-6) / 1e4
        tables.append({"r1": r1, "counts": counts.tolist(), "p": cut.tolist()})
    slo = {"ratios": list(outcomes.ratios), "edges": list(sweep.EDGES), "tables": tables}
    return {**{name: own[name] for name in SETTING}, "budgets": rows, "slo": slo}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="run calibrate", description=__doc__.partition("\n")[0])
    made.add_argument("profile", help="its name or directory")
    made.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PATH",
        help="tar files or folders whose held-out training photographs to use",
    )  # fmt: skip
    made.add_argument("--frames", type=int, default=FRAMES, help=f"at most ({FRAMES})")
    made.add_argument("--r1", type=float, nargs="+", default=FIRSTS, help="first ratios")
    made.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="second ratios")
    made.add_argument("--budget", type=float, help="of the profile's own setting; its training's")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="parameters of amot in place of the profile's, such as second=full",
    )  # fmt: skip
    made.add_argument("--batch", type=int, default=25)
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--amend", action="store_true", help="write the outcome to profile.json")
    made.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    made.add_argument("--plots", type=Path, help="write the plots to this folder, as SVG")
    return made


def bared(profile: Profile, given: Sequence[str]) -> Profile:
    """`profile` with the parameters of A-MOT that are `given`, and none that calibration varies.

    Raises ValueError for one without a value.
    """
    params = {k: v for k, v in profile.manifest.params(NAME).items() if k not in CHOSEN}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: give NAME=VALUE")
        params[name] = type(params.get(name, ""))(value)
    strategies = {**profile.manifest.strategies, NAME: params}
    return replace(profile, manifest=replace(profile.manifest, strategies=strategies))


def run(args: argparse.Namespace, command: str) -> None:
    """Measure, choose, and write what was asked for. Raises ValueError or OffboardError."""
    firsts, ratios = tuple(sorted(args.r1)), tuple(sorted({0.0, *args.ratios}))
    loaded = profiles.load(args.profile)
    profile = bared(loaded, args.set)
    budget = args.budget
    if budget is None:
        if profile.name not in PLANS:
            raise ValueError(f"{profile.name} has no budget of its own: give --budget")
        budget = float(importlib.import_module(PLANS[profile.name]).SHARE)
    photos = photographs(profile, args.data, args.frames)
    pair = Pair(profile, args.device)
    kept = kept_at(profile, args.data, ratios)
    outcomes = outcomes_of(pair, photos, firsts, ratios, kept, args.batch)
    params = parameters(outcomes, budget)
    print(figures.settings_table(params["budgets"]))
    source = "held-out training photographs" if args.data else f"scenes, seeds from {SEEDS.start}"
    if args.amend:
        setting = {name: params[name] for name in SETTING}
        params["slo"]["bytes"] = coded_bytes(pair, photos, setting)
        amended, today = params, datetime.now(UTC).date().isoformat()
        record: dict[str, Any] = {
            "frames": f"{len(photos)} {source}", "command": command, "date": today,
        }  # fmt: skip
        recovery = profile.manifest.params(NAME).get("recovery", RECOVERY)
        own, before = loaded.manifest.params(NAME), loaded.made.get("calibration", {})
        others = own.get("recoveries", {})
        if recovery != own.get("recovery", RECOVERY):
            part = {"budgets": params["budgets"], "slo": params["slo"]}
            amended = {"recoveries": {**others, recovery: part}}
            record = {**before, recovery: record}
        else:
            record |= {word: before[word] for word in others if word in before}
        amend(profile.directory, strategies={NAME: amended}, made={"calibration": record})
    if args.report is not None:
        title = f"{profile.name}: {len(photos)} {source}"
        text = figures.report(title, command, outcomes, params["budgets"], budget)
        args.report.write_text(text)
    if args.plots is not None:
        figures.plots(outcomes, profile.name, params["r1"], args.plots)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 2 with one line that says what was wrong."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    given = sys.argv[1:] if argv is None else argv
    # A record says what was run, not where this machine keeps its files.
    command = " ".join(["python -m profiles.calibrate", *(Path(word).name for word in given)])
    try:
        run(args, command)
    except (ValueError, OffboardError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
