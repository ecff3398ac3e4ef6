"""A-MOT on the device: send a few random patches, then those the server asks for.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4. The device only samples: recovery, confidence and the
choice of the second round's patches are the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import default_rng  # loaded here, not amid the first frame

from common import patches
from common.codec import encode
from common.errors import ConfigError, ProtocolError, Refused, Unavailable
from common.messages import Query, Tensor
from common.profile import Input
from common.units import parse_bytes
from device.bundle import Bundle
from device.params import Param, from_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "amot"
HEAD = 100
"""Bytes of a query's packet beside its tensors, about."""


class Budget(Param):
    """The mean cost of a frame, both rounds: up to 1 a share of its patches, above 1 bytes.

    As text also "40%", "3kB", or "auto", which is all patches: then only what the link can carry
    before the deadline bounds the second round. 0: round one and `r2` on average.
    """

    def check(self, name: str, value: Any) -> float:
        """Raises ConfigError saying what it may be."""
        text = str(value).strip()
        try:
            if text == "auto":
                return 1.0
            if text in ("0", "0.0"):
                return 0.0
            share = text.endswith("%")
            amount = float(text[:-1]) / 100 if share else parse_bytes(text)
            if 0 < amount <= (1.0 if share else self.high):
                return amount
        except (ValueError, ConfigError):
            pass
        raise ConfigError(f"{name}={value}: {name} is {self}")

    def __str__(self) -> str:
        return "a share of the patches such as 40% or 0.4, bytes such as 3kB, or auto"


PARAMS: dict[str, Param] = {
    "r1": Param(0.25, 0.005, 1.0),
    "r2": Param(0.2, 0.0, 1.0),
    "threshold": Param(0.8, 0.0, 1.0),
    "codec": Param("mosaic", choices=("mosaic", "raw", "lz4", "zstd")),
    "quality": Param(75, 1, 100),
    "budget": Budget(0.0, 0.0, 1e9),
    "slo_objective": Param("weighted", choices=("weighted", "printed", "fixed")),
    "recovery": Param("mae", choices=("mae", "none")),
    "second": Param("full", choices=("full", "light")),
}
SERVERS = ("budget", "slo_objective", "recovery", "second")
"""What only the server acts on: sent where the plan differs from the profile, which it has."""


@dataclass(frozen=True, slots=True)
class Amot:
    """Two rounds at most: "sample" `r1` of the patches, "supply" what the server wants.

    "patches": uint8 [K, p*p*3], or with codec "mosaic" a JPEG of their mosaic at `quality`.
    "bitmap": uint8, the patch set of round one. The server ends after round one where its
    confidence reaches `threshold`; otherwise it asks for `r2` of the patches, or for as many as the
    `budget` allows. Round one alone never costs more than the budget.

    `coded`: mean bytes of a patch of round one by codec, where the profile tells.
    """

    classes: tuple[str, ...]
    input: Input
    params: Mapping[str, Any]
    heavy: bool = False
    coded: Mapping[str, float] = field(default_factory=dict)

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """The conversation; where round two fails, round one's provisional answer stands.

        The sample depends on the frame's index alone, so a run can be repeated.
        """
        params = {**self.params, **plan.params}
        total = self.input.patches
        count = max(1, min(round(params["r1"] * total), self._most(params)))
        sampled = patches.sample(count, total, default_rng(frame.index))
        bitmap = np.frombuffer(patches.pack(sampled, total), dtype=np.uint8)
        tensors = {"patches": self._coded(frame, sampled, params), "bitmap": encode(bitmap)}
        asked = {"threshold": params["threshold"], "r2": params["r2"]}
        asked |= {name: plan.params[name] for name in SERVERS if name in plan.params}
        if plan.carry is not None:
            spent = HEAD + sum(len(tensor.data) for tensor in tensors.values())
            asked["afford"] = max(0, int(plan.carry) - spent)
        first = yield Query(NAME, "sample", params=asked, tensors=tensors)
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

    def _most(self, params: Mapping[str, Any]) -> int:
        """Patches that the budget has room for in round one."""
        budget, total = params["budget"], self.input.patches
        if 0 < budget <= 1:
            return int(budget * total)
        if budget > 1 and params["codec"] in self.coded:
            return int((budget - HEAD) / self.coded[params["codec"]])
        return total

    def _coded(self, frame: Frame, indices: patches.Indices, params: Mapping[str, Any]) -> Tensor:
        taken = patches.take(frame.pixels, indices, self.input.patch)
        if params["codec"] != "mosaic":
            return encode(taken, params["codec"])
        picture = patches.mosaic(taken, self.input.patch)
        return encode(picture, "jpeg", quality=params["quality"])


def create(bundle: Bundle) -> Amot:
    """The strategy, with the profile's parameters."""
    manifest = bundle.manifest
    given = manifest.params(NAME)
    coded = {codec: first for codec, (first, _) in given.get("slo", {}).get("bytes", {}).items()}
    return Amot(manifest.classes, manifest.input, from_profile(PARAMS, given), coded=coded)
