"""Trains A-MOT's light inference and its ablations beside a published classifier, and measures.

Liu et al., ACM TOSN 2024, section 4.4; the ablations are those of section 5.3.2 and figure 14. The
classifier and the recovery are frozen, so what they make of a frame is computed once and kept in
the training's folder: the first round's tokens, and those of the new patches alone, for random
first rounds of 10 to 40 % of the patches and the 5 to 30 % with the highest attention that were not
sent. All models learn from the same batches in the same steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import profile as profiles_of
from profiles import amend
from profiles.train import publish
from profiles.train.evaluate import batches
from profiles.train.job import Job
from profiles.train.loop import Recipe, Tick, batch_indices, fit
from profiles.train.patchwork import some, to_patches
from profiles.train.photos import Photos
from profiles.train.served import U8, coded
from server.models import macs
from server.models.checkpoint import load_model, save_weights
from server.models.light import LightConfig, LightInference, encode, for_classifier
from server.models.mae import MaskedAutoencoder, take
from server.models.vit import VisionTransformer, ViTConfig

FIRST, SECOND = (0.1, 0.4), (0.05, 0.3)
"""Ranges of r1 and r2 in training."""
CHUNK = 32
"""Frames that share r1 and r2."""
DRAWS = 2
"""Random first rounds of every frame that is measured."""

Frames = Callable[[npt.NDArray[np.int64], np.random.Generator], U8]
"""Training frames uint8 [n, s, s, 3] at the given places, perhaps augmented."""


def variants(vit: ViTConfig) -> dict[str, LightConfig]:
    """The light inference beside a classifier, and the paper's ablations of it."""
    light = for_classifier(vit)
    return {
        "light": light,
        "only-new": replace(light, first=False),
        "non-linear": replace(light, linear=False),
        "one-attention": replace(light, layers=1),
    }


class Second(NamedTuple):
    """What round two starts from.

    ``tokens`` [b, 1+n, dim] and ``logits`` [b, classes] of round one; ``sent`` [b, k1] and
    ``wanted`` [b, k2] places; ``first`` [b, k1, 768] and ``new`` [b, k2, 768] patches as coded.
    """

    tokens: Tensor
    logits: Tensor
    sent: Tensor
    wanted: Tensor
    first: Tensor
    new: Tensor


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

    @torch.no_grad()
    def round_one(self, patches: Tensor, r1: float, r2: float, half: bool = False) -> Second:
        """Round one from a random ``r1`` of ``patches`` [b, n, 768], and what it asks for.

        ``half``: the classifier computes in bfloat16.
        """
        b, n, _ = patches.shape
        sent = some(max(1, round(r1 * n)), n, b)
        first = coded(take(patches, sent), self.quality)
        pixels = self.mae.recover(first, sent)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tokens, attention = self.vit.forward_features(self.vit.embed(pixels))
            logits = self.vit.forward_head(tokens)
        rest = attention.float().scatter(1, sent, -1.0)
        wanted = rest.topk(max(1, round(r2 * n)), dim=1).indices.sort(1).values
        new = coded(take(patches, wanted), self.quality)
        return Second(tokens, logits, sent, wanted, first, new)

    @torch.no_grad()
    def run_again(self, second: Second) -> Tensor:
        """Logits of the full second round: recovery and classification from all patches."""
        together = torch.cat((second.first, second.new), dim=1)
        places = torch.cat((second.sent, second.wanted), dim=1)
        return self.vit(self.mae.recover(together, places)).logits  # type: ignore[no-any-return]


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


class Lessons:
    """What the frozen models make of training frames, chunk by chunk, in the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self._counts = json.loads((root / "made.json").read_text())["counts"]
        self._tokens, self._new, self._places, self._labels, self._answers = (
            np.load(root / f"{name}.npy", mmap_mode="r")
            for name in ("tokens", "new", "places", "labels", "answers")
        )

    def __len__(self) -> int:
        return len(self._counts)

    def chunk(self, place: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """New tokens [b, 1+k, dim], their places [b, k], first tokens, labels, full logits."""
        k = self._counts[place]
        return (
            torch.from_numpy(self._new[place, :, : 1 + k].astype(np.float32)),
            torch.from_numpy(self._places[place, :, :k].astype(np.int64)),
            torch.from_numpy(self._tokens[place].astype(np.float32)),
            torch.from_numpy(self._labels[place].astype(np.int64)),
            torch.from_numpy(self._answers[place].astype(np.float32)),
        )


@torch.no_grad()
def write(
    root: Path, models: Served, frames: Frames, labels: npt.NDArray[np.int64], count: int, seed: int
) -> None:
    """Write lessons from ``count`` frames to ``root``, unless they are there.

    The frozen classifier computes in bfloat16, as all training here does: twice as fast, and the
    noise is small beside that of coding and sampling. What is measured computes in float32.
    """
    made, size = root / "made.json", min(CHUNK, len(labels))
    key = f"{models.digest} {models.quality} {count} {seed}"
    if made.exists() and json.loads(made.read_text())["key"] == key:
        return
    made.unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    chunks, shape = max(1, count // size), models.vit.config
    n = shape.grid**2
    most = max(1, round(SECOND[1] * n))

    def store(name: str, dtype: type[np.generic], *tail: int) -> npt.NDArray[Any]:
        path = root / f"{name}.npy"
        return np.lib.format.open_memmap(path, "w+", dtype, (chunks, size, *tail))

    tokens, new = (
        store("tokens", np.float16, 1 + n, shape.dim),
        store("new", np.float16, 1 + most, shape.dim),
    )
    places, told = store("places", np.int16, most), store("labels", np.int16)
    answers = store("answers", np.float16, shape.classes)
    counts = []
    for place in tqdm(range(chunks), desc="first rounds", mininterval=5):
        rng = np.random.default_rng([seed, 3, place])
        torch.manual_seed(int(rng.integers(2**31)))
        chosen = batch_indices(len(labels), size, seed, place)
        patches = to_patches(frames(chosen, rng))
        second = models.round_one(patches, rng.uniform(*FIRST), rng.uniform(*SECOND), half=True)
        with torch.autocast("cpu", torch.bfloat16):
            alone = encode(models.vit, second.new, second.wanted)
            whole = models.vit(patches).logits
        k = second.wanted.shape[1]
        counts.append(k)
        tokens[place] = second.tokens.float().numpy()
        new[place, :, : 1 + k] = alone.float().numpy()
        places[place, :, :k] = second.wanted.numpy()
        told[place], answers[place] = labels[chosen], whole.float().numpy()
    made.write_text(json.dumps({"key": key, "counts": counts}) + "\n")


def train(models: Served, lessons: Lessons, job: Job) -> tuple[nn.ModuleDict, int, float]:
    """All variants, trained; the steps and the seconds that took."""
    torch.manual_seed(job.seed)
    trained = nn.ModuleDict()
    for name, config in variants(models.vit.config).items():
        model = LightInference(config)
        model.start_from(models.vit)
        trained[name] = model
    steps = 0

    def loss(tick: Tick) -> tuple[Tensor, dict[str, float]]:
        nonlocal steps
        steps = tick.step + 1
        total, figures = torch.zeros(()), dict.fromkeys(trained, 0.0)
        for place in tick.indices:
            new, places, first, labels, answers = lessons.chunk(int(place))
            target = F.softmax(answers, dim=-1)
            for name, model in trained.items():
                assert isinstance(model, LightInference)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model.decode(new, places, first).float()
                soft = F.kl_div(F.log_softmax(logits, -1), target, reduction="batchmean")
                total = total + F.cross_entropy(logits, labels) + soft
                figures[name] += float((logits.argmax(1) == labels).float().mean())
        return total / len(tick.indices), {k: v / len(tick.indices) for k, v in figures.items()}

    # The gradients of the variants are clipped together: leave each its own share.
    recipe = Recipe(lr=8e-4, batch=2, warmup=0.05, clip=4.0, ema=0.995)
    seconds = fit(
        trained, loss, recipe, job.minutes(15), len(lessons), seed=job.seed,
        checkpoint=job.checkpoint("light"), resume=job.resume, title="light",
    )  # fmt: skip
    return trained, steps, seconds


@torch.no_grad()
def measure(models: Served, trained: nn.ModuleDict, held: Photos) -> dict[str, Any]:
    """Accuracy on ``held`` at the profile's r1 and r2, each frame in both rounds, and the costs."""
    torch.manual_seed(0)
    right: dict[str, int] = {}

    def note(name: str, logits: Tensor, labels: Tensor) -> None:
        right[name] = right.get(name, 0) + int((logits.argmax(1) == labels).sum())

    for patches, told in tqdm(_draws(held), total=DRAWS * len(held) // 50, desc="measure"):
        labels = torch.from_numpy(told)
        second = models.round_one(patches, models.r1, models.r2)
        note("round one", second.logits, labels)
        note("run again", models.run_again(second), labels)
        alone = encode(models.vit, second.new, second.wanted)
        for name, model in trained.items():
            assert isinstance(model, LightInference)
            note(name, model.decode(alone, second.wanted, second.tokens), labels)
    n = models.vit.config.grid**2
    sent, new = max(1, round(models.r1 * n)), max(1, round(models.r2 * n))
    full = macs.classify(models.vit.config)
    cost = {"run again": macs.recover(models.mae.config, min(n, sent + new)) + full}
    for name, config in variants(models.vit.config).items():
        cost[name] = macs.light(config, models.vit.config, new)
    return {
        "r1": models.r1, "r2": models.r2, "frames": len(held), "draws": DRAWS,
        "accuracy": {name: round(hits / (DRAWS * len(held)), 4) for name, hits in right.items()},
        "mega_macs": {"full inference": full / 1e6, **{k: v / 1e6 for k, v in cost.items()}},
        "share_of_full": {name: round(value / full, 4) for name, value in cost.items()},
        "share_of_run_again": round(cost["light"] / cost["run again"], 4),
    }  # fmt: skip


def _draws(held: Photos) -> Iterator[tuple[Tensor, npt.NDArray[np.int64]]]:
    for _ in range(DRAWS):
        yield from batches(held)


def report(found: dict[str, Any]) -> str:
    """The figures of ``measure`` as a table."""
    lines = [f"{'':16}{'right':>8}{'M mult-adds':>14}{'of a full inference':>22}"]
    for name, right in found["accuracy"].items():
        line = f"{name:16}{right:8.1%}"
        if name in found["share_of_full"]:
            line += f"{found['mega_macs'][name]:14,.1f}{found['share_of_full'][name]:22.1%}"
        lines.append(line)
    lines.append(f"a full inference: {found['mega_macs']['full inference']:,.1f} M multiply-adds")
    return "\n".join(lines)


def stage(
    job: Job, name: str, frames: Frames, labels: npt.NDArray[np.int64], count: int, held: Photos
) -> None:
    """Train and measure beside the published profile ``name``, and add the result to it.

    ``count``: training frames whose first rounds are stored.
    """
    models = served(publish.PROFILES / name)
    write(job.out / "light", models, frames, labels, count, job.seed)
    trained, steps, seconds = train(models, Lessons(job.out / "light"), job)
    found = measure(models, trained, held)
    print(report(found))
    light = trained["light"]
    assert isinstance(light, LightInference)
    save_weights(light, job.weights("light"))
    job.record("light", seconds, steps=steps, **found)
    config = asdict(light.config)
    amend.amend(
        models.directory, models={"light": (job.weights("light"), config)},
        made={"light": job.recorded("light")},
    )  # fmt: skip
