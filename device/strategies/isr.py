"""Super-resolution on the server: the whole frame, small, in one round.

The baseline "Image Super resolution" of A-MOT (Liu et al. 2024, section 5.1): the server restores
the frame by a trained network before it classifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.codec import encode
from common.messages import Query
from common.profile import Input
from device.bundle import Bundle
from device.params import Param, from_profile
from device.picture import fit
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "isr"
PARAMS = {
    "scale": Param(0.5, 0.05, 1.0),
    "codec": Param("jpeg", choices=("jpeg", "raw", "lz4", "zstd")),
    "quality": Param(75, 1, 100),
}


@dataclass(frozen=True, slots=True)
class Isr:
    """Sends "frame" uint8 [h, w, 3], each side `scale` of the input's, coded by `codec`."""

    classes: tuple[str, ...]
    input: Input
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        shape, scale = self.input, params["scale"]
        small = fit(
            frame.pixels, max(1, round(shape.height * scale)), max(1, round(shape.width * scale))
        )
        options = {"quality": params["quality"]} if params["codec"] == "jpeg" else {}
        tensors = {"frame": encode(small, params["codec"], **options)}
        result = yield Query(NAME, "whole", tensors=tensors)
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def create(bundle: Bundle) -> Isr:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    return Isr(manifest.classes, manifest.input, from_profile(PARAMS, manifest.params(NAME)))
