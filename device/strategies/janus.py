"""Janus on the device: the first layers of a vision transformer, merging tokens as it goes.

Jiang et al., "Janus: Collaborative Vision Transformer Under Dynamic Network Environment". With N
layers there are N + 2 places to split at: 0, where the frame itself goes up, after each layer, and
N + 1, where the device answers alone. Only where tokens merge does a later split cost fewer bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import merging
from common.codec import encode
from common.errors import ConfigError
from common.merging import Merges
from common.messages import Query
from common.tokens import pack
from device.bundle import Bundle
from device.content import View, view
from device.head import Head
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "janus"
PARAMS = {
    "split": Param(0, 0, 1000),
    "schedule": Param("exponential", choices=("exponential", "linear", "fixed")),
    "alpha": Param(0.0, 0, 1000),
    "r": Param(0, 0, 10000),
    "precision": Param("int8", choices=("int8", "fp16", "fp32")),
    "codec": Param("zstd", choices=("raw", "lz4", "zstd", "lzw")),
    "frame": Param("jpeg", choices=("jpeg", "raw", "lz4", "zstd", "lzw")),
    "quality": Param(90, 1, 100),
}


@dataclass(frozen=True, slots=True)
class Janus:
    """Sends "frame" uint8 [H, W, 3], or "tokens" [n, d] with their "sizes" uint16 [n].

    `total`: tokens of a whole frame. `split` says where; `schedule` how many tokens each layer
    merges, the declining ones by `alpha`, "fixed" by `r`; `precision` and `codec` are of tokens,
    `frame` (and `quality`, of "jpeg") of a frame.
    """

    classes: tuple[str, ...]
    view: View
    head: Head
    total: int
    params: Mapping[str, Any]
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round, or none; Refused and Unavailable pass through.

        Raises ConfigError: a split or an alpha that this model has not.
        """
        params = {**self.params, **plan.params}
        split, layers = params["split"], self.head.layers
        if split > layers + 1:
            raise ConfigError(f"split={split}: a model of {layers} layers has 0 to {layers + 1}")
        merges = self.merges(params)
        pixels = self.view(frame)
        if split == 0:
            options = {"quality": params["quality"]} if params["frame"] == "jpeg" else {}
            tensors = {"frame": encode(pixels, params["frame"], **options)}
            query = Query(NAME, "frame", {"merges": list(merges)}, tensors)
            return Answer.of_result((yield query), self.classes, strategy=NAME, rounds=1)
        tokens, sizes = self.head.run(pixels, merges[:split])
        if split == layers + 1:
            probabilities = self.head.classify(tokens, sizes)
            return Answer.of(probabilities, self.classes, strategy=NAME, source="device", rounds=0)
        tensors = pack(tokens, params["precision"], params["codec"])
        tensors["sizes"] = encode(sizes.astype(np.uint16), params["codec"])
        query = Query(NAME, "tokens", {"merges": list(merges[split:])}, tensors)
        return Answer.of_result((yield query), self.classes, strategy=NAME, rounds=1)

    def merges(self, params: Mapping[str, Any]) -> Merges:
        """How many tokens each layer merges. Raises ConfigError for too large an alpha."""
        layers = self.head.layers
        if params["schedule"] == "fixed":
            return merging.fixed(params["r"], layers, self.total)
        if params["schedule"] == "linear":
            return merging.linear(params["alpha"], layers, self.total)
        try:
            return merging.schedule(params["alpha"], layers, self.total)
        except ValueError as error:
            raise ConfigError(str(error)) from None


def create(bundle: Bundle) -> Janus:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its files."""
    manifest = bundle.manifest
    params = manifest.params(NAME)
    bundle.path(params["weights"])  # the graphs point into it
    head = Head(
        bundle.path(params["embed"]),
        [bundle.path(block) for block in params["blocks"]],
        bundle.path(params["last"]),
    )
    own = from_profile(PARAMS, params)
    return Janus(manifest.classes, view(manifest), head, int(params["tokens"]), own)
