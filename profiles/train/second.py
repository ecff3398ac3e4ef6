"""What a second round of A-MOT starts from, by a profile's frozen models, computed once and kept.

A lesson is what those models make of ``CHUNK`` frames that share r1 and r2: the tokens and the
answer of round one from random patches, the tokens of the new patches alone, and the answer that
running again gives. It is one file, so a run that was stopped goes on where it was. With recovery
"mae" round one recovers the frame and with "none" it has the sent patches alone, each as
``server/strategies/amot.py`` serves it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from common import profile as profiles_of
from profiles.train.loop import batch_indices
from profiles.train.patchwork import some, to_patches
from profiles.train.served import U8, coded
from server.models.checkpoint import load_model
from server.models.light import begin, encode, for_classifier
from server.models.mae import MaskedAutoencoder, take
from server.models.spread import spread
from server.models.vit import VisionTransformer

CHUNK = 25
"""Frames in a lesson; it divides the numbers of frames held out."""

Recovery = Literal["mae", "none"]
RECOVERIES: tuple[Recovery, ...] = ("mae", "none")
Range = tuple[float, float]
Frames = Callable[[npt.NDArray[np.int64], np.random.Generator], U8]
"""Frames uint8 [n, s, s, 3] at the given places, perhaps augmented."""


class Second(NamedTuple):
    """What round two starts from.

    ``tokens`` of round one that the light inference goes on from [b, 1+n, dim], or [b, 1+k1, dim]
    without recovery, and round one's ``logits`` [b, classes]; ``sent`` [b, k1] and ``wanted``
    [b, k2] places; ``first`` [b, k1, 768] and ``new`` [b, k2, 768] patches as coded.
    """

    tokens: Tensor
    logits: Tensor
    sent: Tensor
    wanted: Tensor
    first: Tensor
    new: Tensor


class Lesson(NamedTuple):
    """What is kept of a chunk of frames.

    ``tokens`` as in ``Second``; ``new`` [b, 1+k2, dim] tokens of the new patches alone; ``labels``
    [b]; logits [b, classes] of round ``one`` and of running ``again``; ``places`` [b, k2] of the
    new tokens among those of round one, None where they have none.
    """

    tokens: Tensor
    new: Tensor
    labels: Tensor
    one: Tensor
    again: Tensor
    places: Tensor | None


@dataclass(frozen=True)
class Served:
    """A published profile's frozen models and A-MOT's settings."""

    directory: Path
    vit: VisionTransformer
    mae: MaskedAutoencoder
    r1: float
    r2: float
    quality: int
    digest: str

    @property
    def after(self) -> int:
        """The classifier's layers behind which the light inference takes both rounds' tokens."""
        return for_classifier(self.vit.config).after

    @torch.no_grad()
    def round_one(self, patches: Tensor, r1: float, r2: float, recovery: Recovery) -> Second:
        """Round one from a random ``r1`` of ``patches`` [b, n, 768], and what it asks for."""
        b, n, _ = patches.shape
        sent = some(max(1, round(r1 * n)), n, b)
        first = coded(take(patches, sent), self.quality)
        if recovery == "mae":
            embedded = self.vit.embed(self._recover(first, sent))
        else:
            embedded = self.vit.embed(first, sent)
        tokens = begin(self.vit, embedded, self.after)
        seen, attention = self.vit.forward_features(tokens, self.after)
        if recovery == "none":
            attention = spread(attention.float(), sent, self.vit.config.grid)
        rest = attention.float().scatter(1, sent, -1.0)
        wanted = rest.topk(max(1, round(r2 * n)), dim=1).indices.sort(1).values
        new = coded(take(patches, wanted), self.quality)
        return Second(tokens, self.vit.forward_head(seen), sent, wanted, first, new)

    @torch.no_grad()
    def run_again(self, second: Second, recovery: Recovery) -> Tensor:
        """Logits of the full second round, from the patches of both rounds."""
        together = torch.cat((second.first, second.new), dim=1)
        places = torch.cat((second.sent, second.wanted), dim=1)
        if recovery == "none":
            return self.vit(together, places).logits  # type: ignore[no-any-return]
        return self.vit(self._recover(together, places)).logits  # type: ignore[no-any-return]

    def _recover(self, visible: Tensor, places: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # its scatter takes one type
            return self.mae.recover(visible, places)


def served(directory: Path) -> Served:
    """The models and settings in a profile directory."""
    profile = profiles_of.load(directory)
    params = profile.manifest.params("amot")
    vit, mae = (
        load_model(entry.file, entry.kind, entry.config)
        for entry in (profile.models["vit"], profile.models["mae"])
    )
    assert isinstance(vit, VisionTransformer)
    assert isinstance(mae, MaskedAutoencoder)
    files = b"".join(profile.models[kind].file.read_bytes() for kind in ("vit", "mae"))
    return Served(
        directory, vit.requires_grad_(False), mae.requires_grad_(False),
        params["r1"], params["r2"], params["quality"], hashlib.sha256(files).hexdigest(),
    )  # fmt: skip


@torch.no_grad()
def write(
    root: Path, models: Served, frames: Frames, labels: npt.NDArray[np.int64], recovery: Recovery,
    count: int, r1: Range, r2: Range, seed: int, half: bool,
) -> list[Path]:  # fmt: skip
    """The lessons from ``count`` frames in the folder ``root``; those that are there are kept.

    Frames come in permutations of all that have ``labels``, epoch after epoch. ``half``: the
    classifier computes in bfloat16, as in all training here: twice as fast, with noise that is
    small beside that of coding and sampling.
    """
    size = min(CHUNK, len(labels))
    key = (
        f"{models.digest} {models.after} {models.quality} {len(labels)} {recovery} "
        f"{r1} {r2} {seed} {half}"
    )
    made = root / "made.json"
    if not made.exists() or json.loads(made.read_text()) != key:
        made.unlink(missing_ok=True)
        for old in root.glob("*.npz"):
            old.unlink()
        root.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(key) + "\n")
    paths = [root / f"{place:05d}.npz" for place in range(max(1, count // size))]
    missing = [place for place, path in enumerate(paths) if not path.exists()]
    for place in tqdm(missing, desc=f"rounds, recovery {recovery}", mininterval=5):
        rng = np.random.default_rng([seed, 3, place])
        torch.manual_seed(int(rng.integers(2**31)))
        chosen = batch_indices(len(labels), size, seed, place)
        patches = to_patches(frames(chosen, rng))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            second = models.round_one(patches, rng.uniform(*r1), rng.uniform(*r2), recovery)
            lesson = Lesson(
                second.tokens, encode(models.vit, second.new, second.wanted, models.after),
                torch.from_numpy(labels[chosen]), second.logits,
                models.run_again(second, recovery), second.wanted if recovery == "mae" else None,
            )  # fmt: skip
        _store(paths[place], lesson)
    return paths


def _store(path: Path, lesson: Lesson) -> None:
    arrays = {
        name: (value.half() if value.is_floating_point() else value.short()).numpy()
        for name, value in lesson._asdict().items()
        if value is not None
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def read(path: Path) -> Lesson:
    """A lesson that ``write`` left: float32, and int64 places and labels."""
    with np.load(path) as stored:
        values = {name: torch.from_numpy(stored[name]) for name in stored}
    wide = {k: v.float() if v.is_floating_point() else v.long() for k, v in values.items()}
    return Lesson(**{"places": None, **wide})  # type: ignore[arg-type]
