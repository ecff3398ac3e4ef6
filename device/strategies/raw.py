"""The whole frame, without loss: what costs most bytes and loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.codec import encode
from common.messages import Query
from device.bundle import Bundle
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "raw"
PARAMS = {"codec": Param("lz4", choices=("raw", "lz4", "zstd"))}


@dataclass(frozen=True, slots=True)
class Raw:
    """Sends "frame" uint8 [H, W, 3], coded by `codec`."""

    classes: tuple[str, ...]
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        tensors = {"frame": encode(frame.pixels, params["codec"])}
        result = yield Query(NAME, "whole", tensors=tensors)
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def create(bundle: Bundle) -> Raw:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    return Raw(manifest.classes, from_profile(PARAMS, manifest.params(NAME)))
