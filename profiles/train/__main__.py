"""``python -m profiles.train STAGE PROFILE``: train one stage of a profile, or all of them.

Stages of ``signs``: mae, vit, local, publish. Of ``imagenette``: teacher, teach, mae, local, vit,
finish, publish. Of ``digits``: recogniser, local, publish. Of ``sst2``: bert, publish, pools,
three. Of ``clips``: vit, publish. ``publish`` writes the profile directory; the stages after it add
to it what builds on the published models, such as ``light``, A-MOT's light inference. ``all`` runs
every stage in its order, and a wrong name lists them. Intermediate files and checkpoints lie in
--out.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Threads that spin while they wait take the core from whatever else runs; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PROFILES = ("clips", "digits", "imagenette", "signs", "sst2")
PLANS = {name: f"profiles.train.plan_{name}" for name in PROFILES}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="run train", description=__doc__)
    made.add_argument("stage", help="a stage of the profile, or all")
    made.add_argument("profile", choices=sorted(PLANS))
    made.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PATH",
        help="tar files or folders: photographs' train and val (imagenette), recordings (digits), "
        "sentences (sst2)",
    )  # fmt: skip
    made.add_argument("--seed", type=int, default=0)
    length = made.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="length of the stage in minutes")
    length.add_argument("--steps", type=int, help="length of the stage in steps")
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    made.add_argument("--out", type=Path, help="folder of intermediate files")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for; 0, or 2 for a wrong command line."""
    args = parser().parse_args(arguments)
    import torch

    from profiles.train.job import Job, Stage
    from profiles.train.loop import Budget
    from profiles.train.photos import cache_dir

    torch.set_num_threads(args.threads)
    plan = importlib.import_module(PLANS[args.profile])
    stages: dict[str, Stage] = plan.STAGES
    if args.stage != "all" and args.stage not in stages:
        parser().error(f"{args.profile} has the stages {', '.join(stages)} and all")
    chosen = list(stages) if args.stage == "all" else [args.stage]
    budget = None
    if args.minutes is not None or args.steps is not None:
        budget = Budget(steps=args.steps, minutes=args.minutes)
    out = args.out or cache_dir() / "train" / args.profile
    out.mkdir(parents=True, exist_ok=True)
    job = Job(tuple(args.data), out, args.seed, budget, args.resume)
    for stage in chosen:
        try:
            stages[stage](job)
        except ValueError as error:
            print(f"train {stage} {args.profile}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
