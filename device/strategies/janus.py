"""Janus on the device: the first layers of a vision transformer, merging tokens as it goes.

Jiang et al., "Janus: Collaborative Vision Transformer Under Dynamic Network Environment". With N
layers there are N + 2 places to split at: 0, where the frame itself goes up, after each layer, and
N + 1, where the device answers alone. Only where tokens merge does a later split cost fewer bytes.

With split=auto, the default of a profile that was measured, `device.steering` decides for each
frame. Once the device needs what is left of the time for an answer of its own, it works on that
beside the server; where the link has failed before, at once. With split=fastest merging
stays as it is set and the split of least predicted latency is taken: Neurosurgeon on a vision
transformer, a baseline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from common import merging
from common.codec import encode
from common.errors import ConfigError, Refused, Unavailable
from common.merging import Merges
from common.messages import NO_DEADLINE, Query, Tensor
from common.tokens import pack
from device.beside import Beside, Steps
from device.bundle import Bundle
from device.content import View, view
from device.head import Head
from device.inference import F32
from device.link import UNKNOWN, Estimate
from device.measured import Measured
from device.params import Param, from_profile
from device.partition import cold_start, throughput
from device.steering import Steering, of_profile
from device.strategy import Answer, Conversation, Frame, Plan

NAME = "janus"
AUTO, FASTEST = "auto", "fastest"
PARAMS = {
    "split": Param(0, 0, 1000, words=(AUTO, FASTEST)),
    "schedule": Param("exponential", choices=("exponential", "linear", "fixed")),
    "alpha": Param(0.0, 0, 1000),
    "r": Param(0, 0, 10000),
    "precision": Param("int8", choices=("int8", "fp16", "fp32")),
    "codec": Param("zstd", choices=("raw", "lz4", "zstd", "lzw")),
    "frame": Param("jpeg", choices=("jpeg", "raw", "lz4", "zstd", "lzw")),
    "quality": Param(90, 1, 100),
}
State = tuple[F32, F32]
"""Tokens and their sizes."""


@dataclass(frozen=True, slots=True)
class Janus:
    """Sends "frame" uint8 [H, W, 3], or "tokens" [n, d] with their "sizes" uint16 [n].

    `total`: tokens of a whole frame. `split` says where; `schedule` how many tokens each layer
    merges, the declining ones by `alpha`, "fixed" by `r`; `precision` and `codec` are of tokens,
    `frame` (and `quality`, of "jpeg") of a frame. `measured` and `steering`: None for a profile not
    measured; `cold`: the link before anything was seen of it. `sizes`: bytes of the first frame in
    each coding, by which split=fastest goes.
    """

    classes: tuple[str, ...]
    view: View
    head: Head
    total: int
    params: Mapping[str, Any]
    cold: Estimate = UNKNOWN
    measured: Measured | None = None
    steering: Steering | None = None
    sizes: dict[str, float] = field(default_factory=dict)
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round, or none; Refused and Unavailable pass through.

        Raises ConfigError: a split or an alpha that this model has not.
        """
        params = {**self.params, **plan.params}
        if params["split"] == AUTO:
            return (yield from self._steered(frame, plan, params))
        if params["split"] == FASTEST:
            return (yield from self._fastest(frame, plan, params))
        return (yield from self._fixed(frame, params))

    def _fixed(self, frame: Frame, params: Mapping[str, Any]) -> Conversation:
        split, layers = params["split"], self.head.layers
        if split > layers + 1:
            raise ConfigError(f"split={split}: a model of {layers} layers has 0 to {layers + 1}")
        merges = self.merges(params)
        pixels = self.view(frame)
        state = self.head.run(pixels, merges[:split]) if split else None
        if state is not None and split == layers + 1:
            return self._alone(state)
        query = self._query(frame if state is None else state, merges, split, params)
        return Answer.of_result((yield query), self.classes, strategy=NAME, rounds=1)

    def _query(
        self, what: Frame | State, merges: Merges, split: int, params: Mapping[str, Any]
    ) -> Query:
        """Asks for the rest of a frame, or of tokens behind layer `split`."""
        if isinstance(what, Frame):
            return Query(
                NAME, "frame", {"merges": list(merges)}, {"frame": self._coded(what, params)}
            )
        tokens, sizes = what
        tensors = pack(tokens, params["precision"], params["codec"])
        tensors["sizes"] = encode(sizes.astype(np.uint16), params["codec"])
        return Query(NAME, "tokens", {"merges": list(merges[split:])}, tensors)

    def _coded(self, frame: Frame, params: Mapping[str, Any]) -> Tensor:
        options = {"quality": params["quality"]} if params["frame"] == "jpeg" else {}
        return encode(self.view(frame), params["frame"], **options)

    def _alone(self, state: State, degraded: str | None = None) -> Answer:
        """The answer that tokens behind the last layer give."""
        probabilities = self.head.classify(*state)
        return Answer.of(
            probabilities, self.classes, strategy=NAME, source="device", rounds=0, degraded=degraded
        )

    def _fastest(self, frame: Frame, plan: Plan, params: Mapping[str, Any]) -> Conversation:
        """One frame at the split of least latency. Raises ConfigError for one not measured."""
        if self.measured is None:
            raise ConfigError("split=fastest needs latencies: ./run measure PROFILE")
        began = time.monotonic()
        codec = params["frame"]
        name = f"jpeg-{params['quality']}" if codec == "jpeg" else codec
        coding, whole = self.measured.sent(params["precision"], name)
        if name not in self.sizes:
            self.sizes[name] = float(len(self._coded(frame, params).data))
        chosen = self.measured.fastest(
            self.merges(params), coding, replace(whole, fixed=self.sizes[name]),
            throughput(plan.link, self.cold) / 1e3, self._rtt(plan),
        )  # fmt: skip
        answer = yield from self._fixed(frame, {**params, "split": chosen.split})
        spent = (began - frame.captured) * 1e3
        told = {"split": chosen.split, "coding": chosen.coding}
        return replace(answer, chosen=told, predicted_ms=spent + chosen.total_ms)

    def _rtt(self, plan: Plan) -> float:
        """Milliseconds of a round trip."""
        rtt = self.cold.rtt if plan.link.rtt is None else plan.link.rtt
        return (rtt or 0.0) * 1e3

    def _steered(self, frame: Frame, plan: Plan, params: Mapping[str, Any]) -> Conversation:
        """One frame as `device.steering` decides. Raises ConfigError for a profile not measured."""
        steering, layers = self.steering, self.head.layers
        if steering is None:
            raise ConfigError("split=auto needs latencies: ./run measure PROFILE")
        self.head.open()  # once: to finish a frame in time, no part may be missing
        began = time.monotonic() * 1e3
        spent = began - frame.captured * 1e3
        # As the pipeline does, something is left for what comes after the answer.
        whole = plan.deadline_ms
        left = math.inf if whole is None else whole - min(20.0, whole / 20) - spent
        rtt = self._rtt(plan)
        chosen = steering.decide(began, left, rtt)
        merges = merging.schedule(chosen.alpha, layers, self.total)
        told = {"split": chosen.split, "alpha": chosen.alpha, "coding": chosen.coding}

        def stamped(answer: Answer) -> Answer:
            return replace(answer, chosen=told, predicted_ms=spent + chosen.total_ms)

        state = self.head.run(self.view(frame), merges[: chosen.split]) if chosen.split else None
        if state is not None and chosen.split > layers:
            answer = self._alone(state)
            steering.ran(float(steering.costs.device[chosen.at]), time.monotonic() * 1e3 - began)
            return stamped(answer)
        coded = dict(params)
        if state is None:
            coded["frame"], quality = str(chosen.coding).split("-")
            coded["quality"] = int(quality)
        else:
            coded["precision"] = chosen.coding
        query = self._query(frame if state is None else state, merges, chosen.split, coded)
        size = float(sum(len(tensor.data) for tensor in query.tensors.values()))
        sent = time.monotonic() * 1e3
        if state is None:
            steering.framed(chosen, size)
        else:
            steering.ran(float(steering.costs.device[chosen.at]), sent - began)
        wait = steering.waits(chosen, left) - (sent - began)
        limit = NO_DEADLINE if math.isinf(wait) else max(1, int(wait))
        begins = steering.begins(chosen, left) - (sent - began)

        def finish(steps: Steps) -> State:
            if state is not None:
                return self.head.go_on(*state, steps(merges[chosen.split :]), chosen.split)
            alpha, _ = steering.finishing(chosen, left - (time.monotonic() * 1e3 - began))
            again = merging.schedule(steering.costs.alphas[alpha], layers, self.total)
            return self.head.run(self.view(frame), steps(again))

        beside = Beside(finish, None if math.isinf(begins) else max(0.0, begins / 1e3))
        try:
            result = yield replace(query, ms_left=limit)
        except (Refused, Unavailable) as error:
            now = time.monotonic() * 1e3
            steering.gave_up(now, size, max(now - sent, chosen.link_ms))
            return stamped(self._alone(beside.result(), f"server: {error}"))
        finally:
            beside.stop()
        now = time.monotonic() * 1e3
        steering.answered(now, size, now - sent - result.server_ms - rtt)
        computed = result.server_ms - result.queue_ms
        steering.served(float(steering.costs.server[chosen.at[:2]]), computed, result.queue_ms)
        return stamped(Answer.of_result(result, self.classes, strategy=NAME, rounds=1))

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
    total, cold = int(params["tokens"]), cold_start(params)
    made = Janus(manifest.classes, view(manifest), head, total, own, cold)
    if "latency" not in params:
        return made
    assert cold.throughput is not None
    measured = Measured.read(params["latency"], head.layers, total)
    if "split" not in params:
        own["split"] = AUTO
    return replace(made, measured=measured, steering=of_profile(measured, cold.throughput / 1e3))
