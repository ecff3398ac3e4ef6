"""The settings of DeepCOD's baselines that are tried, and which of them are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from profiles.baselines import Params, grid

KEPT = 6
"""Settings kept of each method and point: the dearest that still gain something."""
FAR = 0.15
"""Accuracy that a setting may be behind on a few frames, and still be tried on all."""
AT_INPUT: Mapping[str, list[Params]] = {
    "intp": grid(scale=[0.35, 0.5, 0.625, 0.75], levels=[8, 12, 16, 24, 32]),
    "lossy": grid(scale=[1.0], levels=[4, 6, 8, 12, 16]),
    "cs": [
        *grid(scale=[0.5, 0.75], ratio=[0.3, 0.6], levels=[9, 15]),
        *grid(scale=[1.0], ratio=[0.1, 0.2, 0.3], levels=[9, 15]),
    ],
    "jpeg": grid(scale=[0.35, 0.5, 0.7, 1.0], quality=[5, 10, 15, 25, 40, 60, 80]),
    "webp": grid(scale=[0.35, 0.5, 0.7, 1.0], quality=[5, 10, 15, 25, 40, 60, 80]),
}
WITHIN: Mapping[str, list[Params]] = {
    "intp": grid(scale=[0.5, 0.75], levels=[2, 3, 4, 6]),
    "lossy": grid(scale=[1.0], levels=[2, 3, 4, 6, 8]),
    "cs": grid(scale=[1.0], ratio=[0.15, 0.3, 0.6], levels=[5, 9, 17]),
    "jpeg": grid(quality=[5, 10, 25, 50, 75]),
}
"""Settings to try at the input and behind it. `levels` are the first plane's."""


def front(tried: Sequence[Params]) -> list[Params]:
    """Those more accurate than all that cost less, at most KEPT of them, by rising cost."""
    rows: list[Params] = []
    for choice in sorted(tried, key=lambda c: (c["cost"], -c["accuracy"])):
        if not rows or choice["accuracy"] > rows[-1]["accuracy"]:
            rows.append(choice)
    return rows[-KEPT:]


def promising(tried: Sequence[Params]) -> list[bool]:
    """Which of them no cheaper one is FAR ahead of, and are right half as often as the best."""
    best = max(choice["accuracy"] for choice in tried)
    return [
        choice["accuracy"] >= best / 2
        and all(
            other["accuracy"] <= choice["accuracy"] + FAR
            for other in tried
            if other["cost"] <= choice["cost"]
        )
        for choice in tried
    ]
