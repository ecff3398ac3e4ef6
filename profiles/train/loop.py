"""The training loop: AdamW, warm-up and cosine, an average of the weights, checkpoints.

What happens in step k depends on the seed and on k alone (batch, augmentation and torch's own
random numbers are seeded per step), so a run that was stopped and resumed from its checkpoint
gives the weights of an uninterrupted one. That holds bit for bit for a budget in steps on one
machine; a budget in minutes sets the schedule by the clock, and only the elapsed time is restored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Budget:
    """How long to train: exactly one of ``steps`` and ``minutes``."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("a budget is a number of steps or of minutes, not both and not none")

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the budget used before ``step``, after ``elapsed`` seconds, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, elapsed / (self.minutes * 60))


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimiser. ``ema`` is the decay of the averaged weights (0: none)."""

    lr: float
    batch: int
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: float = 0.1
    clip: float = 1.0
    ema: float = 0.0


@dataclass(frozen=True)
class Tick:
    """What a step may depend on: its number, the share of the budget used, its random numbers."""

    step: int
    progress: float
    rng: np.random.Generator
    indices: npt.NDArray[np.int64]


Loss = Callable[[Tick], tuple[Tensor, dict[str, float]]]
"""Makes a step's batch and returns its loss and figures to show beside the bar."""


def fit(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    budget: Budget,
    samples: int,
    *,
    seed: int,
    checkpoint: Path,
    resume: bool = False,
    title: str = "train",
    save_every: float = 120.0,
    stop_after: int | None = None,
) -> float:
    """Train ``model`` in place on ``samples`` samples; returns the seconds spent in all.

    With ``recipe.ema`` the model ends with the averaged weights. ``stop_after`` ends this call
    after so many steps, as an interruption would, with a checkpoint written.
    """
    optimiser = _adamw(model, recipe)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else {}
    step, before = 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["seed"] != seed:
            raise ValueError(f"{checkpoint}: was made with seed {state['seed']}, not {seed}")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average = state["average"]
        step, before = int(state["step"]), float(state["elapsed"])
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save(elapsed: float) -> None:
        part = checkpoint.with_suffix(".part")
        torch.save(
            {
                "seed": seed,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "step": step,
                "elapsed": elapsed,
            },
            part,
        )
        part.replace(checkpoint)

    started = saved = time.monotonic()
    bar = tqdm(total=budget.steps, initial=step, desc=title, mininterval=5, maxinterval=30)
    done = 0
    model.train()
    while True:
        elapsed = before + time.monotonic() - started
        progress = budget.progress(step, elapsed)
        if progress >= 1.0 or (stop_after is not None and done >= stop_after):
            break
        rate = recipe.lr * _schedule(progress, recipe.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + step)
        value, figures = loss(
            Tick(
                step,
                progress,
                np.random.default_rng([seed, 1, step]),
                batch_indices(samples, recipe.batch, seed, step),
            )
        )
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        step, done = step + 1, done + 1
        _blend(average, model, min(recipe.ema, (1 + step) / (10 + step)))
        bar.update()
        bar.set_postfix(
            used=f"{progress:.0%}", refresh=False, **{k: f"{v:.3f}" for k, v in figures.items()}
        )
        if time.monotonic() - saved > save_every:
            save(before + time.monotonic() - started)
            saved = time.monotonic()
    bar.close()
    elapsed = before + time.monotonic() - started
    save(elapsed)
    if average and progress >= 1.0:
        model.load_state_dict(average)
    model.eval()
    return elapsed


def batch_indices(samples: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """The samples of ``step``: each epoch is a fresh permutation, cut into whole batches."""
    batch = min(batch, samples)
    epoch, place = divmod(step, samples // batch)
    order = np.random.default_rng([seed, 2, epoch]).permutation(samples)
    return np.sort(order[place * batch : (place + 1) * batch])


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to one hundredth."""
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    share = (progress - warmup) / (1 - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def _adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW without weight decay on one-dimensional tensors (biases, norms)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)


@torch.no_grad()
def _blend(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    if not average:
        return
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)
