"""DF on the device: a light filter finds the crucial area, and only its patches are sent.

The data-filtering baseline of A-MOT (Liu et al., ACM TOSN 2024, section 5.1): "we let the device
run a MobileNet-SSD based model locally, to select the crucial area in the image first. Only the
selected region is transmitted". The filter here is far lighter; patches are coded as A-MOT's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import patches
from common.codec import encode
from common.messages import Query, Tensor
from common.patches import Indices
from common.profile import Input
from device import inference
from device.bundle import Bundle
from device.inference import F32, Model
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "df"
PARAMS = {
    "r": Param(0.3, 0.005, 1.0),
    "floor": Param(0.0, 0.0, 1.0),
    "recovery": Param("mae", choices=("mae", "none")),
    "codec": Param("mosaic", choices=("mosaic", "raw", "lz4", "zstd")),
    "quality": Param(75, 1, 100),
}


@dataclass(frozen=True, slots=True)
class Df:
    """Sends the patches that the filter finds crucial: at most `r` of them, in one round.

    Those it gives a probability below `floor` stay behind. "patches": uint8 [K, p*p*3], or with
    codec "mosaic" a JPEG of their mosaic at `quality`. "bitmap": uint8, the patch set. `recovery`
    says what the server classifies: the frame recovered by its MAE, or the patches alone.
    """

    classes: tuple[str, ...]
    input: Input
    find: Model
    params: Mapping[str, Any]
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        total, side = self.input.patches, self.input.patch
        chosen = choose(self.find(frame.pixels), params["r"], params["floor"])
        taken = patches.take(frame.pixels, chosen, side)
        bitmap = np.frombuffer(patches.pack(chosen, total), dtype=np.uint8)
        sent: Tensor
        if params["codec"] == "mosaic":
            sent = encode(patches.mosaic(taken, side), "jpeg", quality=params["quality"])
        else:
            sent = encode(taken, params["codec"])
        result = yield Query(
            NAME,
            "area",
            params={"recovery": params["recovery"]},
            tensors={"patches": sent, "bitmap": encode(bitmap)},
        )
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def choose(crucial: F32, share: float, floor: float) -> Indices:
    """The patches to send, ascending: the `share` of highest probability [N] not below `floor`.

    One at least.
    """
    count = max(1, round(share * len(crucial)))
    best = np.argsort(-crucial, kind="stable")[:count]
    return np.sort(best[: max(1, int((crucial[best] >= floor).sum()))])


def create(bundle: Bundle) -> Df:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its file."""
    manifest = bundle.manifest
    params = manifest.params(NAME)
    return Df(
        manifest.classes,
        manifest.input,
        inference.load(bundle.path(params["filter"]), "frame", "crucial"),
        from_profile(PARAMS, params),
    )
