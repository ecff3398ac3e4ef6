"""DeepCOD on the device: layers up to the cut, a tiny convolution, a quantiser, a code; one round.

Yao et al., "Deep Compressive Offloading", SenSys 2020. The decoder and the rest of the model are
the server's. Point and rate may differ from frame to frame: everything they need is in the bundle.
At the point "auto" it is the one of least predicted latency, by equation 14 (`device.partition`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import ConfigError
from common.messages import Query, Tensor
from device import encoder, inference
from device.bundle import Bundle
from device.content import View, signal
from device.encoder import Encoder, Values
from device.inference import Model
from device.link import Estimate
from device.params import Param, from_profile
from device.partition import Choice, choices, choose, cold_start
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "deepcod"
AUTO = "auto"
POINTS = ("input", *(f"block-{number}" for number in range(1, 13)))
PARAMS = {
    "point": Param("input", choices=(AUTO, *POINTS)),
    "rate": Param(1, 1, 16),
    "runtime": Param("numpy", choices=("numpy", "onnx", "tflite")),
}


@dataclass(frozen=True, slots=True)
class DeepCod:
    """Sends "code" uint8 [n], the symbols of what lies at a point as `common.columns` codes them.

    `point` says where the model is cut, `rate` which of its encoders, the first of which takes
    fewest bytes (of "auto", at each point that has so many); `runtime`, what computes the
    convolution. Layers before a cut are computed by the
    same one, or by ONNX Runtime where that is numpy.
    """

    bundle: Bundle
    params: Mapping[str, Any]
    view: View
    cold: Estimate
    encoders: dict[tuple[str, int, str], Encoder] = field(default_factory=dict)
    heads: dict[tuple[int, str], Model] = field(default_factory=dict)
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round; Refused and Unavailable pass through.

        Raises ConfigError: a point or rate that the profile has not, a runtime not installed.
        """
        params = {**self.params, **plan.params}
        point, rate, runtime = params["point"], params["rate"], params["runtime"]
        if point == AUTO:
            best = choose(self.choices(rate), plan.link, self.cold)
            point, rate = best.point, best.rate
        elif "rate" not in plan.params:  # the profile's may be of another point
            rate = min(rate, len(self._points()[self._place(point)]["rates"]))
        code = self.encoder(point, rate, runtime)(self.values(frame, point, runtime))
        tensors = {"code": Tensor(code, "uint8", (len(code),))}
        sent = {"point": point, "rate": rate}
        result = yield Query(NAME, "symbols", params=sent, tensors=tensors)
        return Answer.of_result(result, self.bundle.manifest.classes, strategy=NAME, rounds=1)

    def choices(self, rate: int) -> tuple[Choice, ...]:
        """What "auto" chooses from. Raises ConfigError if nothing was measured."""
        return choices(self.bundle.manifest.params(NAME).get("measured", ()), rate)

    def values(self, frame: Frame, point: str, runtime: str) -> Values:
        """What lies at `point` of a frame: [*size, features]."""
        values: Values = self.view(frame)
        for stage in range(1, self._place(point) + 1):
            values = self.head(stage, runtime)(values)
        return values

    def head(self, stage: int, runtime: str) -> Model:
        """What maps the point before number `stage` to it, loaded once."""
        kind = "onnx" if runtime == "numpy" else runtime
        if (stage, kind) not in self.heads:
            path = self.bundle.path(self._points()[stage]["stage"][kind])
            params = self.bundle.manifest.params(NAME)
            if "weights" in params:  # ONNX graphs may point into the model's own file
                self.bundle.path(params["weights"])
            self.heads[stage, kind] = inference.load(path, source="values", target="map")
        return self.heads[stage, kind]

    def encoder(self, point: str, rate: int, runtime: str) -> Encoder:
        """The encoder of that point and rate, loaded once."""
        key = (point, rate, runtime)
        if key not in self.encoders:
            rates = self._points()[self._place(point)]["rates"]
            if not 1 <= rate <= len(rates):
                raise ConfigError(
                    f"{self.bundle.manifest.name!r} has no rate {rate} of {NAME!r} at {point}: "
                    f"choose 1 to {len(rates)}"
                )
            files = rates[rate - 1]
            model = None if runtime == "numpy" else self.bundle.path(files[runtime])
            self.encoders[key] = encoder.load(self.bundle.path(files["npz"]), model)
        return self.encoders[key]

    def _points(self) -> list[Mapping[str, Any]]:
        return list(self.bundle.manifest.params(NAME).get("points", ()))

    def _place(self, point: str) -> int:
        names = [each["name"] for each in self._points()]
        if point not in names:
            raise ConfigError(
                f"{self.bundle.manifest.name!r} has no point {point!r} of {NAME!r}: "
                f"choose one of {', '.join(names)}"
            )
        return names.index(point)


def create(bundle: Bundle) -> DeepCod:
    """The strategy, what its profile's point needs loaded: of "auto" all, so that none waits later.

    Raises ConfigError without a runtime or measurements, Unavailable without an encoder's file.
    """
    manifest = bundle.manifest
    given = manifest.params(NAME)
    made = DeepCod(bundle, from_profile(PARAMS, given), signal(manifest), cold_start(given))
    point, rate, runtime = (made.params[name] for name in ("point", "rate", "runtime"))
    pairs = [(point, rate)]
    if point == AUTO:
        pairs = [(each.point, each.rate) for each in made.choices(rate)]
    for place, number in pairs:
        made.encoder(place, number, runtime)
        for stage in range(1, made._place(place) + 1):
            made.head(stage, runtime)
    return made
