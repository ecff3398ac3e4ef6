"""A-MOT on the device: send a few random patches, then those the server asks for.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4. The device only samples: recovery, confidence and the
choice of the second round's patches are the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import default_rng  # loaded here, not amid the first frame

from common import patches
from common.codec import encode
from common.errors import ProtocolError, Refused, Unavailable
from common.messages import Query, Tensor
from common.profile import Input
from device.bundle import Bundle
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "amot"
PARAMS = {
    "r1": Param(0.25, 0.005, 1.0),
    "r2": Param(0.2, 0.0, 1.0),
    "threshold": Param(0.8, 0.0, 1.0),
    "codec": Param("mosaic", choices=("mosaic", "raw", "lz4", "zstd")),
    "quality": Param(75, 1, 100),
}


@dataclass(frozen=True, slots=True)
class Amot:
    """Two rounds at most: "sample" `r1` of the patches, "supply" what the server wants.

    "patches": uint8 [K, p*p*3], or with codec "mosaic" a JPEG of their mosaic at `quality`.
    "bitmap": uint8, the patch set of round one. The server ends after round one where its
    confidence reaches `threshold`; otherwise it asks for at most `r2` of the patches.
    """

    classes: tuple[str, ...]
    input: Input
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """The conversation; where round two fails, round one's provisional answer stands.

        The sample depends on the frame's index alone, so a run can be repeated.
        """
        params = {**self.params, **plan.params}
        total = self.input.patches
        count = max(1, round(params["r1"] * total))
        sampled = patches.sample(count, total, default_rng(frame.index))
        bitmap = np.frombuffer(patches.pack(sampled, total), dtype=np.uint8)
        first = yield Query(
            NAME,
            "sample",
            params={"threshold": params["threshold"], "r2": params["r2"]},
            tensors={"patches": self._coded(frame, sampled, params), "bitmap": encode(bitmap)},
        )
        provisional = Answer.of_result(first, self.classes, strategy=NAME, rounds=1)
        if first.wants is None:
            return provisional
        try:
            wanted = patches.unpack(first.wants, total)
        except ValueError as error:
            raise ProtocolError(f"wants: {error}") from None
        if not len(wanted):
            return provisional
        supply = {"patches": self._coded(frame, wanted, params)}
        try:
            second = yield Query(NAME, "supply", tensors=supply, memory=first.id)
        except (Refused, Unavailable) as error:
            return replace(provisional, degraded=f"second round failed: {error}")
        return Answer.of_result(second, self.classes, strategy=NAME, rounds=2)

    def _coded(self, frame: Frame, indices: patches.Indices, params: Mapping[str, Any]) -> Tensor:
        taken = patches.take(frame.pixels, indices, self.input.patch)
        if params["codec"] != "mosaic":
            return encode(taken, params["codec"])
        picture = patches.mosaic(taken, self.input.patch)
        return encode(picture, "jpeg", quality=params["quality"])


def create(bundle: Bundle) -> Amot:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    params = from_profile(PARAMS, manifest.params(NAME))
    return Amot(manifest.classes, manifest.input, params)
