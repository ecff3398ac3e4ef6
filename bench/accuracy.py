"""What merging and coding cost in accuracy, as far as the replay of Janus can tell it.

Of ViT-L@384 two figures are published (ToMe's); between them and beyond stands a straight line. All
else was measured on our own classifier of photographs, paired with the exact answers (docs/janus.md
has tables, errors and commands): what coding costs, which is charged to ViT-L as well; and what
merging costs, which is told beside as an account of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from device.steering import LOSS
from profiles.replay import Frame

CODED = {"jpeg-90": 0.71, "jpeg-75": 0.0, "jpeg-50": 4.0}
"""Points that a frame so coded costs, of 700 photographs. int8 tokens cost 0.05 at most: none."""
MERGED = {
    "declining": ((0.0, 0.0), (0.468, 0.0), (0.691, 0.33), (0.8, 3.0)),
    "fixed": ((0.0, 0.0), (0.472, 0.0), (0.658, 1.0)),
}
"""Of Janus's schedule (the last point is the linear one's, which merges all that can be) and of
ToMe's fixed r: (share of the tokens behind the first layer merged away, points lost). Gains of one
photograph in 300 are taken for none, and more merging for as much as the most."""


def coding(frame: Frame) -> str:
    """How what the answer rests on was sent; "" where the device answered."""
    return "" if frame.gave_up else frame.chosen.coding or ""


def merged(frame: Frame) -> float:
    """The mean share of tokens merged away, over all layers: the rest of the loss is a coding's."""
    return frame.loss - LOSS.get(coding(frame), 0.0)


def coded(frames: Sequence[Frame]) -> float:
    """Points that coding costs, the mean."""
    return float(np.mean([CODED.get(coding(frame), 0.0) for frame in frames]))


def own(frames: Sequence[Frame], layers: int, schedule: str) -> float:
    """Points that our own classifier loses where as much is merged and coded, the mean.

    A first layer has all tokens, whatever it merges: shares are of the `layers` - 1 behind it.
    """
    shares = np.array([merged(frame) for frame in frames]) * layers / (layers - 1)
    known, points = np.array(MERGED[schedule]).T
    return coded(frames) + float(np.interp(shares, known, points).mean())
