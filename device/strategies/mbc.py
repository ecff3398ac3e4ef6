"""MBC on the device: the embedding, squeezed into a few small whole numbers per token.

The model-based compression of A-MOT's comparison (Liu et al., ACM TOSN 2024, section 5.1), after
Matsubara et al., BottleFit (WoWMoM 2022): a bottleneck trained around the split of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.codec import encode
from common.messages import Query
from device import inference
from device.bundle import Bundle
from device.inference import Model
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "mbc"
PARAMS = {"codec": Param("zstd", choices=("raw", "lz4", "zstd"))}


@dataclass(frozen=True, slots=True)
class Mbc:
    """Sends "symbols" uint8 [channels, N]: the bottleneck's values, rounded."""

    classes: tuple[str, ...]
    embed: Model
    squeeze: Model
    params: Mapping[str, Any]
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        latent = self.squeeze(self.embed(frame.pixels))
        symbols = np.rint(latent).astype(np.uint8)
        tensors = {"symbols": encode(symbols, params["codec"])}
        result = yield Query(NAME, "symbols", tensors=tensors)
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def create(bundle: Bundle) -> Mbc:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its files."""
    manifest = bundle.manifest
    params = manifest.params(NAME)
    return Mbc(
        manifest.classes,
        inference.load(bundle.path(params["embed"]), "frame", "embedding"),
        inference.load(bundle.path(params["squeeze"]), "embedding", "latent"),
        from_profile(PARAMS, params),
    )
