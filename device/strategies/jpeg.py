"""The whole frame as a JPEG or WebP: what people do today, and what every result stands beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.codec import encode
from common.messages import Query
from device.bundle import Bundle
from device.params import Param, from_profile
from device.picture import fit
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "jpeg"
PARAMS = {
    "quality": Param(75, 1, 100),
    "scale": Param(1.0, 0.05, 1.0),
    "format": Param("jpeg", choices=("jpeg", "webp")),
}


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Sends "frame" uint8 [h, w, 3] coded at `quality`, 4:2:0, each side `scale` of the input's.

    The server resamples it to the input's size. `format` "webp" needs Pillow on both sides; it
    is smaller than "jpeg", and its coder many times slower.
    """

    classes: tuple[str, ...]
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        height, width, _ = frame.pixels.shape
        scale = params["scale"]
        small = fit(frame.pixels, max(1, round(height * scale)), max(1, round(width * scale)))
        tensors = {"frame": encode(small, params["format"], quality=params["quality"])}
        result = yield Query(NAME, "whole", tensors=tensors)
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def create(bundle: Bundle) -> Jpeg:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    return Jpeg(manifest.classes, from_profile(PARAMS, manifest.params(NAME)))
