"""Server-driven transmission: the whole frame small first, then what the server wants at full size.

After Du et al., "Server-Driven Video Streaming for Deep Neural Network Inference" (DDS), SIGCOMM
2020, as A-MOT (Liu et al. 2024, section 5.1) configures it for pictures: a low-quality frame, then
the target area at high quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common import patches
from common.codec import encode
from common.errors import ProtocolError, Refused, Unavailable
from common.messages import Query, Tensor
from common.profile import Input
from device.bundle import Bundle
from device.params import Param, from_profile
from device.picture import fit
from device.strategy import Answer, Conversation, Frame, Pixels, Plan

NAME = "sdt"
PARAMS = {
    "scale": Param(0.5, 0.05, 1.0),
    "r2": Param(0.1, 0.0, 1.0),
    "threshold": Param(0.8, 0.0, 1.0),
    "codec": Param("mosaic", choices=("mosaic", "raw", "lz4", "zstd")),
    "low_quality": Param(30, 1, 100),
    "quality": Param(75, 1, 100),
}


@dataclass(frozen=True, slots=True)
class Sdt:
    """Two rounds at most: "low" the frame, each side `scale` of the input's, "supply" patches.

    "frame": uint8 [h, w, 3]; "patches": uint8 [K, p*p*3] at full size. With codec "mosaic" both
    are JPEGs, the frame of `low_quality`, the mosaic of the patches of `quality`. The server ends
    after round one where its confidence reaches `threshold`; otherwise it asks for at most `r2` of
    the patches.
    """

    classes: tuple[str, ...]
    input: Input
    params: Mapping[str, Any]
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """The conversation; where round two fails, round one's provisional answer stands."""
        params = {**self.params, **plan.params}
        shape, scale = self.input, params["scale"]
        small = fit(
            frame.pixels, max(1, round(shape.height * scale)), max(1, round(shape.width * scale))
        )
        first = yield Query(
            NAME,
            "low",
            params={"threshold": params["threshold"], "r2": params["r2"]},
            tensors={"frame": _coded(small, params["codec"], params["low_quality"])},
        )
        provisional = Answer.of_result(first, self.classes, strategy=NAME, rounds=1)
        if first.wants is None:
            return provisional
        try:
            wanted = patches.unpack(first.wants, shape.patches)
        except ValueError as error:
            raise ProtocolError(f"wants: {error}") from None
        if not len(wanted):
            return provisional
        taken = patches.take(frame.pixels, wanted, shape.patch)
        if params["codec"] == "mosaic":
            taken = patches.mosaic(taken, shape.patch)
        supply = {"patches": _coded(taken, params["codec"], params["quality"])}
        try:
            second = yield Query(NAME, "supply", tensors=supply, memory=first.id)
        except (Refused, Unavailable) as error:
            return replace(provisional, degraded=f"second round failed: {error}")
        return Answer.of_result(second, self.classes, strategy=NAME, rounds=2)


def _coded(pixels: Pixels, codec: str, quality: int) -> Tensor:
    if codec == "mosaic":
        return encode(pixels, "jpeg", quality=quality)
    return encode(pixels, codec)


def create(bundle: Bundle) -> Sdt:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    return Sdt(manifest.classes, manifest.input, from_profile(PARAMS, manifest.params(NAME)))
