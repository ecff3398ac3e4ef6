"""Chooses the settings of what DeepCOD is compared with, for each offloading point, and its books.

    python -m profiles.offloading imagenette --data imagenette-train.tar --amend
    python -m profiles.offloading digits --data fsdd.tar --amend

Ranges and code books come from training frames. Every setting of a grid then answers held-out
ones, through the device's strategy and the server's in this process and without a wire: first a few
frames, and where it is not far behind there, all. Those that no cheaper one is as good as go into
the profile.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in profiles.train

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common import book
from common import profile as profiles
from common.book import Book
from common.errors import OffboardError
from common.offloading import F32, Part, Setting, Shape, banded
from common.profile import Profile
from device.bundle import Bundle
from device.strategies import offload
from device.strategies.offload import INPUT, NAME, Offload, values
from device.strategy import Frame, Pixels
from profiles.amend import amend
from profiles.baselines import BATCH, Params, grid, trials
from profiles.export_tail import tail_onnx
from profiles.offloading_grid import AT_INPUT, WITHIN, front, promising
from profiles.train import autoencoder, digits
from profiles.train.deepcod import to_signal
from profiles.train.photos import Photos, load, split_off
from server.models.autoencoder import AutoEncoder
from server.models.backbone import KINDS, backbone
from server.models.checkpoint import load_model
from server.models.cnn import Cnn
from server.serving import Serving, strategies
from server.strategy import Strategy

FITTED, TRIED, FEW = 100, 150, 4
"""Photographs that ranges and books come from, and that settings are tried on: one in FEW first."""
OUTLIERS = 0.1
"""Per cent of values on each side of a part's range."""
SHRINKAGE = 0.3
"""What a coefficient costs in the recovery, in steps of what is measured."""
BOOKS = "device/offload.npz"
TABLES = ("lengths", "zeros", "predicted")
MEANS = 48
"""Levels of the blocks' means, where the rest is sensed."""


def frames_of(profile: Profile, data: Sequence[Path], count: int) -> tuple[Photos, Photos]:
    """FITTED training frames and `count` held out, evenly spaced; sounds as frames of any length.

    Raises ValueError: no such data.
    """
    if profile.manifest.task == "listen":
        parts = [
            Photos(ragged(each.sounds), each.labels)
            for each in (digits.training(data), digits.choosing(data))
        ]
        order = np.random.default_rng(0).permutation(len(parts[1]))[:count]
        held = parts[1].take(np.sort(order))
        shown = np.arange(0, len(parts[0]), max(1, len(parts[0]) // FITTED))[:FITTED]
        return parts[0].take(shown), held
    photos = load(data, "train")
    training, kept = split_off(photos)
    # Files, and so indices, come class by class.
    spaced = [
        each[np.arange(min(most, len(each))) * len(each) // min(most, len(each))]
        for each, most in ((training, FITTED), (kept, count))
    ]
    return photos.take(spaced[0]), photos.take(spaced[1])


def ragged(sounds: Sequence[Any]) -> Any:
    """An array of arrays."""
    made = np.empty(len(sounds), dtype=object)
    made[:] = list(sounds)
    return made


def signals(model: nn.Module, profile: Profile) -> dict[str, list[Shape]]:
    """The shapes of the planes at every point of the profile's backbone."""
    size, behind = profile.manifest.input, backbone(model)
    frame = torch.zeros(1, size.channels, size.height, size.width)
    if size.channels == 1:
        frame = frame[:, 0]  # a sound's bands are its features
    made: dict[str, list[Shape]] = {}
    with torch.inference_mode():
        for point in behind.points:
            made[point] = [tuple(behind.before(frame, point).shape[1:])]
    if size.channels == 1:
        made[INPUT] = [(1, size.height, size.width)]
    else:
        (_, height, width), *_ = made[INPUT]
        made[INPUT] = [(1, height, width), (2, height // 2, width // 2)]
    return made


def parts(found: Sequence[Sequence[F32]], params: Params) -> list[Part]:
    """The ranges of the parts of a setting, from their values on frames [n][part].

    Values around zero have zero as a level, and the same steps in every plane.
    """
    made: list[Part] = []
    step = 0.0
    for place, part in enumerate(zip(*found, strict=True)):
        low, high = (float(v) for v in np.percentile(np.stack(part), (OUTLIERS, 100 - OUTLIERS)))
        if "ratio" in params and place % 2 == 0:
            made.append(Part(low, max(high, low + 1e-3), MEANS))
        elif low < -0.25 * high:
            step = step or 2 * max(-low, high) / (params["levels"] - 1)
            reach = max(1, round(max(-low, high) / step))
            made.append(Part(-reach * step, reach * step, 2 * reach + 1))
        else:
            made.append(Part(0.0, max(high, 1e-3), params["levels"]))
            step = made[-1].high / (made[-1].levels - 1)
    return made


def fitted(
    device: Offload, point: str, method: str, frames: Sequence[Any], settings: Sequence[Params]
) -> list[tuple[Params, list[Book]]]:
    """Rows as a profile has them, and the books of each, for `settings` of one method."""
    made: list[tuple[Params, list[Book]]] = []
    if method in offload.PICTURES and point == INPUT:
        return [(params, []) for params in settings]
    signal = [device.signal(point, frame) for frame in frames]
    if method in offload.PICTURES:
        top = float(np.percentile([each[0] for each in signal], 100 - OUTLIERS / 2))
        return [({**params, "parts": [[0.0, top, 256]]}, []) for params in settings]
    for params in settings:
        bare = Setting(params["scale"], params.get("ratio"), 0.0, ())
        found = [values(each, bare) for each in signal]
        ranges = parts(found, params)
        row = {key: value for key, value in params.items() if key != "levels"}
        row["parts"] = [[p.low, p.high, p.levels] for p in ranges]
        if "ratio" in params:
            row["penalty"] = SHRINKAGE * (ranges[1].high - ranges[1].low) / (ranges[1].levels - 1)
        books = [
            book.trained(_banded([p.quantise(v) for v in part]), p.levels)
            for p, part in zip(ranges, zip(*found, strict=True), strict=True)
        ]
        made.append((row, books))
    return made


def _banded(symbols: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    each = np.stack(symbols)
    return each.reshape(len(each), *banded(each.shape[1:]))


def tables(books: Mapping[str, Book]) -> dict[str, Any]:
    """The arrays of books by name, as the bundle's file has them."""
    return {f"{name}/{key}": made.tables[key] for name, made in books.items() for key in TABLES}


@torch.no_grad()
def encoder(model: AutoEncoder, frames: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """The arrays of Offload-AE+'s centres and book."""
    symbols = np.concatenate([model.encode(to_signal(frame[None])).numpy() for frame in frames])
    made = book.trained(symbols.astype(np.uint8), model.config.levels)
    return {"ae/centres": model.quantizer.centres.numpy(), **tables({"ae": made})}


def candidates(
    device: Offload, shapes: Mapping[str, Any], frames: Sequence[Any]
) -> Iterator[tuple[str, str, list[tuple[Params, list[Book]]]]]:
    """(point, method, rows and books) of all that is to be tried."""
    pictures = device.bundle.manifest.input.channels == 3
    for point in shapes:
        for method, settings in (AT_INPUT if point == INPUT else WITHIN).items():
            if method in offload.PICTURES and not pictures and (point == INPUT or method == "webp"):
                settings = (
                    grid(scale=[1.0], quality=[5, 10, 25, 50, 75]) if method == "jpeg" else []
                )
            if settings:
                yield point, method, fitted(device, point, method, frames, settings)


def base_of(profile: Profile) -> Params:
    """What the strategy takes over from DeepCOD: backbone, and the stages that the device has.

    Raises ConfigError: a profile without DeepCOD.
    """
    deepcod = profile.manifest.params("deepcod")
    points = deepcod.get("points", ())
    stages = [point["stage"]["onnx"] for point in points if "stage" in point]
    made: Params = {"method": "lossy", "backbone": deepcod["backbone"], "stages": stages}
    if "weights" in deepcod:
        made["weights"] = deepcod["weights"]
    if autoencoder.FILE in {file.path for file in profile.manifest.files}:
        made |= {"autoencoder": autoencoder.FILE, "autoencoder_weights": autoencoder.WEIGHTS}
    return made


def backbone_of(profile: Profile) -> tuple[nn.Module, Path]:
    """The model behind the codecs, and its weights' file."""
    kind = profile.manifest.params("deepcod")["backbone"]
    (entry,) = (model for model in profile.models.values() if model.kind == kind)
    model = load_model(entry.file, entry.kind, entry.config)
    assert isinstance(model, KINDS[kind])
    return model, entry.file


def tail(profile: Profile, stages: int) -> Path | None:
    """Write what a device needs, behind its `stages`, to run the whole model alone.

    None if that is no CNN, or there are no stages.
    """
    model, weights = backbone_of(profile)
    if not isinstance(model, Cnn) or not stages:
        return None
    size = profile.manifest.input
    return tail_onnx(model, weights, (size.height, size.width), stages)


def chosen(
    profile: Profile, photos: Photos, held: Photos, base: Params
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The strategy's parameters, `base` among them, and the arrays of its books.

    `photos` (or sounds) are what ranges and books come from, `held` what settings are tried on.
    """
    model, _ = backbone_of(profile)
    reached = [INPUT, *(f"block-{number + 1}" for number in range(len(base["stages"])))]
    shapes = {k: v for k, v in signals(model, profile).items() if k in reached}
    arrays: dict[str, Any] = {}
    if "autoencoder" in profile.models:
        made = profile.models["autoencoder"]
        coder = load_model(made.file, made.kind, made.config)
        assert isinstance(coder, AutoEncoder)
        arrays = encoder(coder, photos.frames)
    base = {**base, "signals": shapes, "books": BOOKS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / profile.name
        shutil.copytree(profile.directory, root)
        np.savez(root / "offload.npz", **arrays)
        file = {BOOKS: root / "offload.npz"}
        amend(root, strategies={NAME: {**base, "settings": {}}}, files=file)
        device = _device(root)
        seen = [device.view(Frame(0, "", np.array(frame), 0.0)) for frame in photos.frames]
        found: list[tuple[str, str, list[tuple[Params, list[Book]]]]] = list(
            candidates(device, shapes, seen)
        )
        settings: dict[str, dict[str, list[Params]]] = {}
        books: dict[str, Book] = {}
        for point, method, rows in found:
            settings.setdefault(point, {})[method] = [row for row, _ in rows]
            books |= _named(point, method, [made for _, made in rows])
        np.savez(root / "offload.npz", **arrays, **tables(books))
        amend(root, strategies={NAME: {**base, "settings": settings}}, files=file)
        device, serving = _device(root), Serving(profiles.load(root))
        server = strategies(serving, [NAME])[NAME]
        best: dict[str, dict[str, list[Params]]] = {}
        kept: dict[str, Book] = {}
        for point, method, rows in found:
            tried = [
                {"method": method, "point": point, "rate": place + 1} for place in range(len(rows))
            ]
            rough = outcomes(device, server, held.take(np.arange(0, len(held), FEW)), tried)
            tried = [t for t, fit in zip(tried, promising(rough), strict=True) if fit]
            outcome = outcomes(device, server, held, tried)
            steps = front(outcome)
            best.setdefault(point, {})[method] = [
                {
                    **rows[step["rate"] - 1][0],
                    "cost": round(step["cost"], 1),
                    "accuracy": step["accuracy"],
                }
                for step in steps
            ]
            kept |= _named(point, method, [rows[step["rate"] - 1][1] for step in steps])
            for row in best[point][method]:
                print(f"{point:8} {method:6} {row}", flush=True)
        codings = ["lossless", *(["ae"] if "autoencoder" in base else [])]
        whole, *coded = outcomes(device, server, held, [{"method": each} for each in codings])
        print(f"without loss {whole}, coded {coded}")
    params = {**base, "settings": best, "whole": whole["accuracy"]}
    if coded:
        params["ae"] = {key: coded[0][key] for key in ("cost", "accuracy")}
    return params, {**arrays, **tables(kept)}


def outcomes(
    device: Offload, server: Strategy, held: Photos, tried: Sequence[Params]
) -> list[Params]:
    """What each setting costs and gets right of `held`."""
    return [next(trial.choices()) for trial in trials(device, server, held, tried)]


def _named(point: str, method: str, rows: Sequence[Sequence[Book]]) -> dict[str, Book]:
    return {
        f"{point}/{method}/{rate}/{place}": made
        for rate, books in enumerate(rows, 1)
        for place, made in enumerate(books)
    }


class Remembering(Offload):
    """Computes what lies at a point of a frame once: many settings ask for it in a row."""

    known: dict[tuple[int, bytes], F32] = {}  # noqa: RUF012 - shared on purpose, and bounded

    def at(self, count: int, pixels: Pixels) -> F32:
        """As Offload's."""
        key = count, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        if key not in self.known:
            if len(self.known) >= 2 * BATCH:
                self.known.clear()
            self.known[key] = Offload.at(self, count, pixels)
        return self.known[key]


def _device(root: Path) -> Offload:
    loaded = profiles.load(root)
    present = {file.path for file in loaded.manifest.files}
    made = offload.create(Bundle(loaded.manifest, root, present))
    return Remembering(made.bundle, made.params, made.view)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="profiles.offloading", description=__doc__)
    made.add_argument("profile", help="its name or directory")
    made.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH",
        help="tar files or folders whose training frames to use",
    )  # fmt: skip
    made.add_argument("--frames", type=int, default=TRIED, help=f"held out, at most ({TRIED})")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--amend", action="store_true", help="write the outcome to profile.json")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0, or 2 with one line that says what was wrong."""
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        profile = profiles.load(args.profile)
        shown, tried = frames_of(profile, args.data, args.frames)
        params, arrays = chosen(profile, shown, tried, base_of(profile))
        if args.amend:
            last = tail(profile, len(params["stages"]))
            alone = {} if last is None else {f"weights/{last.name}": last}
            if alone:
                params["tail"] = next(iter(alone))
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "offload.npz"
                np.savez_compressed(file, **arrays)
                given = sys.argv[1:] if argv is None else argv
                words = [Path(word).name for word in given]
                amend(
                    profile.directory, strategies={NAME: params}, files={BOOKS: file, **alone},
                    made={NAME: {"frames": len(tried),
                                 "command": " ".join(["python -m profiles.offloading", *words])}},
                )  # fmt: skip
    except (ValueError, OffboardError) as error:
        print(f"offloading: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
