"""Trains A-MOT's light inference and its ablations beside a published classifier, and measures.

Liu et al., ACM TOSN 2024, section 4.4; the ablations are those of section 5.3.2 and figure 14. The
classifier and the recovery are frozen, so what they make of training frames is computed once
(``second.py``), for random first rounds of 10 to 40 % of the patches and the 5 to 30 % with the
highest attention that were not sent, with recovery and without. Then the light inference learns
from that, and each ablation after it, from the same batches in as many steps.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from profiles import amend
from profiles.train import publish, second
from profiles.train.job import Job
from profiles.train.loop import Budget, Recipe, Tick, fit
from profiles.train.photos import Photos
from profiles.train.second import RECOVERIES, Frames, Recovery, Served
from profiles.train.served import U8
from server.models import macs
from server.models.checkpoint import save_weights
from server.models.light import LightConfig, LightInference, begin, for_classifier
from server.models.vit import ViTConfig

FIRST, SECOND = (0.1, 0.4), (0.05, 0.3)
"""Ranges of r1 and r2 in training."""
MEASURED = 4_000
"""Second rounds that are measured with each recovery: of the frames held out, again and again."""
RECIPE = Recipe(lr=5e-4, batch=3, warmup=0.05, ema=0.995)
"""A batch is so many lessons."""


def variants(vit: ViTConfig) -> dict[str, LightConfig]:
    """The light inference beside a classifier, and the paper's ablations of it."""
    light = for_classifier(vit)
    return {
        "light": light,
        "only-new": replace(light, first=False),
        "one-attention": for_classifier(vit, layers=1),
        "non-linear": replace(light, linear=False),
    }


def train(
    models: Served, lessons: list[Path], job: Job
) -> tuple[dict[str, LightInference], int, float]:
    """All variants, trained; the steps of each and the seconds of all.

    Minutes as a budget are the light inference's; the ablations get the steps that it took.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of the plain kernel, see below
    budget, steps, seconds = job.minutes(8), 0, 0.0
    trained = {}
    for name, config in variants(models.vit.config).items():
        torch.manual_seed(job.seed)
        model = LightInference(config)
        model.start_from(models.vit)
        checkpoint = job.checkpoint("light" if name == "light" else f"light-{name}")
        seconds += fit(
            model, partial(_loss, model, models, lessons), RECIPE, budget, len(lessons),
            seed=job.seed, checkpoint=checkpoint, resume=job.resume, title=name,
        )  # fmt: skip
        steps = int(torch.load(checkpoint, weights_only=True)["step"])
        budget = Budget(steps=steps)
        trained[name] = model
    return trained, steps, seconds


def _loss(
    model: LightInference, models: Served, lessons: list[Path], tick: Tick
) -> tuple[Tensor, dict[str, float]]:
    """From the label and the answer of running again."""
    total, right = torch.zeros(()), 0.0
    for place in tick.indices:
        lesson = second.read(lessons[place])
        # With few tokens the plain kernel of attention is faster on a CPU than the fused one.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = decode(model, models, lesson).float()
        said = F.log_softmax(logits, -1)
        total = total + F.kl_div(said, lesson.again.softmax(-1), reduction="batchmean")
        total = total + F.nll_loss(said, lesson.labels)
        right += float((logits.argmax(1) == lesson.labels).float().mean())
    count = len(tick.indices)
    return total / count, {"right": right / count}


def decode(model: LightInference, models: Served, lesson: second.Lesson) -> Tensor:
    """Logits of ``model`` for a lesson, whose tokens may have to go on to where it takes them."""
    new, tokens = (
        begin(models.vit, each, model.config.after, models.after)
        for each in (lesson.new, lesson.tokens)
    )
    return model.decode(new, lesson.places, tokens)


@torch.no_grad()
def measure(
    models: Served, trained: dict[str, LightInference], held: dict[Recovery, list[Path]]
) -> dict[str, Any]:
    """Accuracy on the lessons of frames ``held`` out at the profile's r1 and r2, and the costs."""
    found: dict[str, Any] = {"r1": models.r1, "r2": models.r2}
    for recovery, paths in held.items():
        right: dict[str, int] = {}
        count = 0
        for path in paths:
            lesson = second.read(path)
            answers = {"round one": lesson.one, "run again": lesson.again}
            answers |= {name: decode(model, models, lesson) for name, model in trained.items()}
            for name, logits in answers.items():
                right[name] = right.get(name, 0) + int((logits.argmax(1) == lesson.labels).sum())
            count += len(lesson.labels)
        accuracy = {name: round(hits / count, 4) for name, hits in right.items()}
        found[recovery] = {"count": count, "accuracy": accuracy, **costs(models, recovery)}
    return found


def costs(models: Served, recovery: Recovery) -> dict[str, dict[str, float]]:
    """Multiply-adds, in millions and as shares of a full inference, at the profile's r1 and r2."""
    vit = models.vit.config
    n = vit.grid**2
    sent, new = max(1, round(models.r1 * n)), max(1, round(models.r2 * n))
    full, both = macs.classify(vit), min(n, sent + new)
    first = None if recovery == "mae" else sent
    again = macs.classify(vit, both)
    if recovery == "mae":
        again = macs.recover(models.mae.config, both) + full
    taken = {"full inference": full, "run again": again}
    for name, config in variants(vit).items():
        taken[name] = macs.light(config, vit, new, first)
    return {
        "mega_macs": {name: value / 1e6 for name, value in taken.items()},
        "share_of_full": {name: round(value / full, 4) for name, value in taken.items()},
    }


def report(found: dict[str, Any]) -> str:
    """The figures of ``measure`` as tables."""
    lines = []
    for recovery in RECOVERIES:
        part = found[recovery]
        head = f"recovery {recovery}"
        lines.append(f"{head:16}{'right':>8}{'M mult-adds':>14}{'of a full inference':>22}")
        names = dict.fromkeys((*part["accuracy"], *part["mega_macs"]))
        for name in names:
            right = f"{part['accuracy'][name]:.2%}" if name in part["accuracy"] else ""
            cost = ""
            if name in part["mega_macs"]:
                cost = f"{part['mega_macs'][name]:14,.1f}{part['share_of_full'][name]:22.1%}"
            lines.append(f"{name:16}{right:>8}{cost}")
    return "\n".join(lines)


def stage(
    job: Job, name: str, frames: Frames, labels: npt.NDArray[np.int64], count: int, held: Photos
) -> None:
    """Train and measure beside the published profile ``name``, and add the result to it.

    ``count``: first rounds to learn from with each recovery.
    """
    models, root = second.served(publish.PROFILES / name), job.out / "light"

    def kept(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> U8:
        return held.frames[chosen]

    lessons: list[Path] = []
    tested: dict[Recovery, list[Path]] = {}
    r1, r2 = (models.r1, models.r1), (models.r2, models.r2)
    for place, recovery in enumerate(RECOVERIES):
        lessons += second.write(
            root / recovery, models, frames, labels, recovery, count, FIRST, SECOND,
            2 * job.seed + place, half=True,
        )  # fmt: skip
        tested[recovery] = second.write(
            root / f"held-{recovery}", models, kept, held.labels, recovery,
            min(MEASURED, 4 * len(held)), r1, r2, 0, half=False,
        )  # fmt: skip
    trained, steps, seconds = train(models, lessons, job)
    found = measure(models, trained, tested)
    print(report(found))
    light = trained["light"]
    save_weights(light, job.weights("light"))
    job.record("light", seconds, steps=steps, **found)
    amend.amend(
        models.directory, models={"light": (job.weights("light"), asdict(light.config))},
        made={"light": job.recorded("light")},
    )  # fmt: skip
