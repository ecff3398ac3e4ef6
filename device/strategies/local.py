"""A small model on the device itself: no bytes, no server, and the answer of last resort."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError
from device import inference
from device.bundle import Bundle
from device.content import View, view
from device.params import Param
from device.strategy import Answer, Conversation, Frame, LocalModel, Plan

NAME = "local"
PARAMS: dict[str, Param] = {}


@dataclass(frozen=True, slots=True)
class Local:
    """Answers by `model` alone."""

    classes: tuple[str, ...]
    view: View
    model: LocalModel
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """No round at all."""
        yield from ()
        probabilities = self.model(self.view(frame))
        return Answer.of(probabilities, self.classes, strategy=NAME, source="device", rounds=0)


def create(bundle: Bundle) -> Local:
    """The strategy. Raises ConfigError without a runtime, Unavailable without the model's file."""
    needed = bundle.needed(NAME)
    if len(needed) != 1:
        raise ConfigError(f"profile {bundle.manifest.name!r} names no file for {NAME!r}")
    model = inference.load(bundle.path(needed[0].path))
    return Local(bundle.manifest.classes, view(bundle.manifest), model)
