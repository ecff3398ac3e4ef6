"""DeepCOD on the device: one tiny convolution, a quantiser, a Huffman code; one round.

Yao et al., "Deep Compressive Offloading", SenSys 2020, at the input as the offloading point. The
decoder and the whole model are the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.codec import encode
from common.errors import ConfigError
from common.messages import Query
from device import encoder
from device.bundle import Bundle
from device.encoder import Encoder
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "deepcod"
PARAMS = {
    "rate": Param(1, 1, 16),
    "runtime": Param("numpy", choices=("numpy", "onnx", "tflite")),
}


@dataclass(frozen=True, slots=True)
class DeepCod:
    """Sends "code" uint8 [n], the frame's symbols as `common.huffman` codes them.

    `rate` says which of the profile's encoders, the first of which takes fewest bytes; `runtime`,
    what computes its convolution.
    """

    bundle: Bundle
    params: Mapping[str, Any]
    encoders: dict[tuple[int, str], Encoder] = field(default_factory=dict)
    heavy: bool = False

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through.

        Raises ConfigError: a rate that the profile has not, a runtime that is not installed.
        """
        params = {**self.params, **plan.params}
        code = self.encoder(params["rate"], params["runtime"])(frame.pixels)
        tensors = {"code": encode(np.frombuffer(code, dtype=np.uint8))}
        result = yield Query(NAME, "symbols", params={"rate": params["rate"]}, tensors=tensors)
        return Answer.of_result(result, self.bundle.manifest.classes, strategy=NAME, rounds=1)

    def encoder(self, rate: int, runtime: str) -> Encoder:
        """The encoder of `rate`, loaded once."""
        if (rate, runtime) not in self.encoders:
            files = self.bundle.manifest.params(NAME)
            if f"npz-{rate}" not in files:
                raise ConfigError(f"{self.bundle.manifest.name!r} has no rate {rate} of {NAME!r}")
            model = None
            if runtime != "numpy":
                model = self.bundle.path(files[f"{runtime}-{rate}"])
            weights = self.bundle.path(files[f"npz-{rate}"])
            self.encoders[rate, runtime] = encoder.load(weights, model)
        return self.encoders[rate, runtime]


def create(bundle: Bundle) -> DeepCod:
    """The strategy, its profile's encoder loaded.

    Raises ConfigError without a runtime, Unavailable without the encoder's file.
    """
    made = DeepCod(bundle, from_profile(PARAMS, bundle.manifest.params(NAME)))
    made.encoder(made.params["rate"], made.params["runtime"])
    return made
