"""What DIMEC-DC and DIMEE share on the device: route by the embedding, answer here or ask a tier.

An easy sample never touches the network. A medium one asks the edge, a hard one the cloud, through
the edge where that has a cloud peer. If nobody answers, the device's own layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common.codec import encode
from common.errors import ConfigError, Refused, Unavailable
from common.messages import Query, Tensor
from device import front, pools
from device.bundle import Bundle
from device.front import Front, Seen
from device.params import Param, from_profile
from device.pools import MOBILE, TIERS, Kept, Pools, Scores
from device.strategy import Answer, Conversation, Frame, Plan

F32 = npt.NDArray[np.float32]
NEAREST, SCORES = "nearest", "scores"
PARAMS: dict[str, Param] = {
    "route": Param(NEAREST, choices=(NEAREST, SCORES, *TIERS)),
    "pools": Param("fixed", choices=("fixed", "adaptive")),
    "send": Param("input", choices=("input", "hidden")),
}


@dataclass(frozen=True, slots=True)
class Exits:
    """The classifiers behind the device's layers: `weights` [m, k, classes], `biases`.

    Each looks at the mean of the tokens, k = dim; or with `norms` [m, 2, k] at the first beside the
    mean of the others, k = 2 dim, normalised.
    """

    weights: F32
    biases: F32
    norms: F32 | None
    eps: float

    def __call__(self, tokens: F32, layer: int) -> F32:
        """Probabilities [classes] behind `layer`, counted from 1, of `tokens` [n, dim]."""
        if self.norms is None:
            x = tokens.mean(0)
        else:
            x = np.concatenate((tokens[0], tokens[1:].mean(0)))
            x = x - x.mean()
            x = x / np.sqrt((x * x).mean() + self.eps) * self.norms[layer - 1, 0]
            x = x + self.norms[layer - 1, 1]
        logits = x @ self.weights[layer - 1] + self.biases[layer - 1]
        logits = np.exp(logits - logits.max())
        return np.asarray(logits / logits.sum(), np.float32)


@dataclass(frozen=True, slots=True)
class Tiers:
    """One strategy of three tiers. `params` "route": "nearest" pool mean, our "scores", or a tier.

    `pools` "adaptive": every routed sample moves its pool's mean. `send` "hidden": a sample that
    leaves has been through this device's layers, and goes as tokens float16 [n, dim].
    `early`: whether to leave at the first exit whose confidence reaches the parameter `alpha`.
    """

    name: str
    classes: tuple[str, ...]
    front: Front
    layers: int
    exits: Exits
    started: Pools
    scores: Scores | None
    kept: Callable[[], Kept]
    params: Mapping[str, Any]
    early: bool
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """No round for an easy sample, one for the others. Raises Refused: no word is known."""
        params = {**self.params, **plan.params}
        seen = self.front(frame)
        tier = self.route(seen.embedding, params)
        if tier == MOBILE:
            return self._here(seen, params)
        # The hidden state costs the layers first; the input leaves at once.
        tokens = self._through(seen) if params["send"] == "hidden" else None
        asked = {"tier": tier} | ({"alpha": params["alpha"]} if self.early else {})
        query = Query(self.name, params["send"], params=asked, tensors=self._sent(seen, tokens))
        try:
            result = yield query
        except (Refused, Unavailable) as error:
            answer = self._here(seen, params)
            return replace(answer, degraded=_and(f"no answer of the {tier}: {error}", seen.doubt))
        answer = Answer.of_result(result, self.classes, strategy=self.name, rounds=1)
        return replace(answer, degraded=_and(answer.degraded, seen.doubt))

    def route(self, embedding: F32, params: Mapping[str, Any]) -> str:
        """The tier of a sample, by nothing but its `embedding` [dim]."""
        if params["route"] == SCORES:
            if self.scores is None:
                raise ConfigError(f"this profile has no scores to route {self.name!r} by")
            return TIERS[self.scores.best(embedding)]
        if params["route"] != NEAREST:
            return str(params["route"])
        if params["pools"] == "adaptive":
            return TIERS[self.kept().take(embedding)]
        return TIERS[self.started.nearest(embedding)]

    def _here(self, seen: Seen, params: Mapping[str, Any]) -> Answer:
        tokens = seen.tokens()
        for place in range(1, self.layers + 1):
            tokens = self.front.layer(tokens, place)
            if place == self.layers or self.early:
                row = self.exits(tokens, place)
                if self.early and row.max() >= params["alpha"]:
                    break
        return Answer.of(
            row, self.classes, strategy=self.name, source="device", rounds=0, degraded=seen.doubt
        )

    def _through(self, seen: Seen) -> F32:
        tokens = seen.tokens()
        for place in range(1, self.layers + 1):
            tokens = self.front.layer(tokens, place)
        return tokens

    def _sent(self, seen: Seen, tokens: F32 | None) -> Mapping[str, Tensor]:
        if tokens is None:
            return seen.sent()
        return {"hidden": encode(tokens.astype(np.float16))}


def load(name: str, params: Mapping[str, Param], bundle: Bundle, *, early: bool) -> Tiers:
    """The strategy `name`, with its profile's files; of its parameters the profile sets also

    `mobile`, how many layers the device has, `exits` and `tiers`, the files of classifiers and
    pools, and what `front.load` names.

    Raises ConfigError without a runtime or a fitting profile, Unavailable without the files.
    """
    manifest = bundle.manifest
    given = manifest.params(name)
    with np.load(bundle.path(given["exits"])) as held:
        norms = held["norms"].astype(np.float32) if "norms" in held else None
        weights, biases = (held[key].astype(np.float32) for key in ("weights", "biases"))
        exits = Exits(weights, biases, norms, float(held["eps"]))
    count = int(given["mobile"])
    if not 0 < count <= min(len(exits.weights), len(given["blocks"])):
        raise ConfigError(f"profile {manifest.name!r}: {name!r} has no exit behind layer {count}")
    started, scores = pools.load(bundle.path(given["tiers"]))
    held_open: list[Kept] = []

    def kept() -> Kept:
        if not held_open:
            held_open.append(Kept.of(bundle.directory.parent / f"{name}-pools.npz", started))
        return held_open[0]

    return Tiers(
        name, manifest.classes, front.load(bundle, given), count, exits, started, scores, kept,
        from_profile(params, given), early,
    )  # fmt: skip


def _and(one: str | None, other: str | None) -> str | None:
    return "; ".join(each for each in (one, other) if each) or None
