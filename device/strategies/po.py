"""PO on the device: the embedding and the first attention block, then every token.

The partition-oriented baseline of A-MOT (Liu et al., ACM TOSN 2024, section 5.1): "we let the
device complete the first attention layer and transmit the intermediate results to the server".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.messages import Query
from common.tokens import pack
from device import inference
from device.bundle import Bundle
from device.inference import Model
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "po"
PARAMS = {
    "precision": Param("int8", choices=("int8", "fp16")),
    "codec": Param("zstd", choices=("raw", "lz4", "zstd")),
}


@dataclass(frozen=True, slots=True)
class Po:
    """Sends "tokens" [1+N, dim] after block one: float16, or int8 with "scales" float16 [1+N].

    A token is its int8 values times its scale.
    """

    classes: tuple[str, ...]
    embed: Model
    block: Model
    params: Mapping[str, Any]
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through."""
        params = {**self.params, **plan.params}
        tokens = self.block(self.embed(frame.pixels))
        result = yield Query(NAME, "tokens", tensors=pack(tokens, **params))
        return Answer.of_result(result, self.classes, strategy=NAME, rounds=1)


def create(bundle: Bundle) -> Po:
    """The strategy. Raises ConfigError without a runtime, Unavailable without its files."""
    manifest = bundle.manifest
    params = manifest.params(NAME)
    return Po(
        manifest.classes,
        inference.load(bundle.path(params["embed"]), "frame", "embedding"),
        inference.load(bundle.path(params["block"]), "embedding", "tokens"),
        from_profile(PARAMS, params),
    )
