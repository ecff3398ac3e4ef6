"""The whole frame, without loss: what costs most bytes and loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from common.codec import encode
from common.errors import Refused
from common.messages import Query, Tensor
from common.sound import compress, to_int16
from device.bundle import Bundle
from device.content import View, view
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan, Samples

NAME = "raw"
PARAMS = {
    "codec": Param("lz4", choices=("raw", "lz4", "zstd")),
    "form": Param("frame", choices=("frame", "samples", "mulaw")),
}
SOUNDS: Mapping[str, Callable[[Samples], npt.NDArray[Any]]] = {
    "samples": to_int16,
    "mulaw": compress,
}


@dataclass(frozen=True, slots=True)
class Raw:
    """Sends what the models look at, "frame" uint8 [H, W, C], coded by `codec`.

    Of a sound `form` may be the sound itself: "samples" int16 [n], or with "mulaw" uint8 [n].
    """

    classes: tuple[str, ...]
    view: View
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through. Refused: a picture has no samples."""
        params = {**self.params, **plan.params}
        tensors = self._tensors(frame, params["form"], params["codec"])
        result = yield Query(NAME, "whole", tensors=tensors)
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)

    def _tensors(self, frame: Frame, form: str, codec: str) -> dict[str, Tensor]:
        if form == "frame":
            return {"frame": encode(self.view(frame), codec)}
        try:
            samples = frame.samples
        except TypeError as error:
            raise Refused("bad", f"{error}: form={form} is for sounds, leave it out") from None
        return {"samples": encode(SOUNDS[form](samples), codec)}


def create(bundle: Bundle) -> Raw:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    params = from_profile(PARAMS, manifest.params(NAME))
    return Raw(manifest.classes, view(manifest), params)
