"""A-MOT on the server: recover, classify, and ask for what attention looks at.

Liu et al., "Adaptive Offloading of Transformer Inference for Weak Edge Devices with Masked
Autoencoders", ACM TOSN 2024, section 4. Round one ("sample") recovers the frame from random
patches, classifies it, and ends where the confidence (the largest softmax) reaches the threshold.
Otherwise it asks for the patches with the highest attention of the class token in the last layer,
averaged over heads, that were not sent yet: as many as the SLO-adaptive module allows (section
4.3, `server.budget`), or `r2` of them where the profile has no calibration. Round two ("supply")
recovers and classifies again from all patches, or leaves it to the light inference (section 4.4).
Every reply carries its probabilities, so round one's are the provisional answer.

Ablations of the paper (section 5.3): threshold 0 is A-MOT-O, slo_objective "fixed" is MOT. With
recovery "none" the classifier sees the sent patches alone (Non-R). It then has attention for those
only, and what is not sent yet is judged by how much its neighbours on the grid are looked at.

Works are batched by the number of patches: each such number is a forward of its own shape, and
devices of one profile sample alike. Padding would make the encoder pay for the largest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import patches
from common.errors import ConfigError, Refused
from common.messages import Query
from common.patches import Indices
from server.budget import HEAD, Allowance, Ask, Promise, Terms
from server.models.light import LightInference, begin
from server.models.spread import spread
from server.serving import F32, U8, Serving, no_step, number, to_numpy
from server.slo import Table
from server.strategy import Arrays, Memory, Outcome, Work

NAME = "amot"
SAMPLE, SUPPLY = "sample", "supply"
OBJECTIVES = ("weighted", "printed", "fixed")
RECOVERIES = ("mae", "none")
SECONDS = ("light", "full")
MAX_BUDGET = 1e9


@dataclass(frozen=True, slots=True)
class FirstRound:
    """What round one leaves of a frame: what was sent at `indices` [K], and those `wanted`.

    For a full second round `patches` uint8 [K, p*p*3]. For a light one the `tokens` that it
    goes on from, on the accelerator: [1+N, dim], or [1+K, dim] where nothing was recovered.
    """

    recovery: str
    indices: Indices
    wanted: Indices
    promise: Promise
    patches: U8 | None = None
    tokens: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes held."""
        held = 0 if self.patches is None else self.patches.nbytes
        held += 0 if self.tokens is None else self.tokens.nbytes
        return held + self.indices.nbytes + self.wanted.nbytes


class Amot:
    """Two rounds at most. The profile's parameters, which a query may override:

    `threshold`: confidence at which round one ends it. `r2`: ratio of N that round two may have,
    for each frame ("fixed") or on average. `budget`: mean cost of a frame instead, both rounds: up
    to 1 a share of its patches, above 1 bytes; 0: none but r2. `slo_objective`: "weighted",
    "printed" (`slo.solve`) or "fixed". `recovery`: "mae" or "none". `second`: "light" or "full".
    """

    def __init__(self, serving: Serving) -> None:
        """Raises ConfigError where the profile's parameters do not fit it."""
        self._serving = serving
        params = serving.params(NAME)
        self._total = serving.input.patches
        self._width = serving.input.patch**2 * serving.input.channels
        kinds = {model.kind for model in serving.profile.models.values()}
        self._table = Table.from_mapping(params["slo"]) if "slo" in params else None
        tables = {
            word: Table.from_mapping(each["slo"])
            for word, each in params.get("recoveries", {}).items()
        }
        self._light = serving.model("light", LightInference) if "light" in kinds else None
        self._choices = {
            "slo_objective": OBJECTIVES if self._table is not None else ("fixed",),
            "recovery": RECOVERIES if "mae" in kinds else ("none",),
            "second": SECONDS if self._light is not None else ("full",),
        }
        self._params: dict[str, Any] = {key: each[0] for key, each in self._choices.items()}
        self._params |= {"threshold": 0.8, "r1": 0.25, "r2": 0.2, "budget": 0.0, "second": "full"}
        self._params |= params
        for key, choices in self._choices.items():
            if self._params[key] not in choices:
                raise ConfigError(
                    f"profile {serving.profile.name!r}: amot's {key} is {self._params[key]!r}, "
                    f"and what the profile holds allows {' or '.join(choices)}"
                )
        for key, most in (("threshold", 1.0), ("r1", 1.0), ("r2", 1.0), ("budget", MAX_BUDGET)):
            if not 0 <= self._params[key] <= most:
                raise ConfigError(
                    f"profile {serving.profile.name!r}: amot's {key} is {self._params[key]}, "
                    f"not from 0 to {most:g}"
                )
        depth = serving.classifier.config.depth
        if self._light is not None and self._light.config.after >= depth:
            raise ConfigError(
                f"profile {serving.profile.name!r}: its light inference goes on behind layer "
                f"{self._light.config.after}, and of the classifier's {depth} one at least has to "
                "be left: train it again"
            )
        self._allowances = {
            word: Allowance(tables.get(word, self._table), serving.bucket)
            for word in self._choices["recovery"]
        }
        if "mae" in kinds:
            serving.recovery  # noqa: B018

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check one round. Raises Refused("bad" | "forgotten" | "unknown")."""
        if query.step == SAMPLE:
            return self._sample(query)
        if query.step == SUPPLY:
            return self._supply(query, memory)
        raise no_step(query, SAMPLE, SUPPLY)

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Answer works of one step, one number of patches and one way to compute them."""
        _, step, _, way, *_ = works[0].key
        if step == SAMPLE:
            return self._judge(works, *self._look(works, str(way)))
        for work in works:
            allowance = self._allowances[work.remembered.recovery]
            allowance.settle(work.remembered.promise, work.params["size"])
        rows = self._lightly(works) if way == "light" else self._look(works, str(way))[0]
        return [Outcome(row) for row in rows]

    @torch.inference_mode()
    def warm(self) -> None:
        """Both rounds at the profile's ratios, per batch size worth it."""
        params, light = self._params, self._params["second"] == "light"
        first = min(self._total, max(1, round(params["r1"] * self._total)))
        second = min(self._total - first, round(params["r2"] * self._total))
        for size in self._serving.warm_sizes:
            for count in {self._total} | (set() if light else {first + second}):
                self._look([self._blank(count)] * size, params["recovery"])
            _, _, tokens = self._look([self._blank(first)] * size, params["recovery"])
            if light and second:
                blank = self._blank(second)
                assert tokens is not None
                places = blank.arrays["indices"]
                left = FirstRound(params["recovery"], places, places, Promise(0), tokens=tokens[0])
                self._lightly([Work(blank.key, blank.arrays, remembered=left)] * size)

    def _blank(self, count: int) -> Work:
        blank = np.zeros((count, self._width), np.uint8)
        arrays: Arrays = {"patches": blank, "indices": np.arange(count)}
        return Work((NAME, SAMPLE, count), arrays, {"second": self._params["second"]})

    # Decoding, on the CPU.

    def _sample(self, query: Query) -> Work:
        bitmap = self._serving.array(query, "bitmap", "uint8", ((self._total + 7) // 8,))
        try:
            indices = patches.unpack(bitmap.tobytes(), self._total)
        except ValueError as error:
            raise Refused("bad", str(error)) from None
        if not len(indices):
            raise Refused("bad", "the bitmap is empty: send at least one patch")
        recovery, second = self._word(query, "recovery"), self._word(query, "second")
        arrays: Arrays = {
            "patches": self._serving.supplied(query, len(indices)),
            "indices": indices,
        }
        params = {"ask": self._ask(query, len(indices)), "second": second}
        return Work((NAME, SAMPLE, len(indices), recovery), arrays, params)

    def _ask(self, query: Query, sent: int) -> Ask:
        """What `query` says of the second round."""
        params, total = self._params, self._total
        r2 = number(query, "r2", params["r2"], 0.0, 1.0)
        given = number(query, "budget", params["budget"], 0.0, MAX_BUDGET)
        objective = self._word(query, "slo_objective")
        budget: float | None = given if given > 1.0 else given * total
        if not given:
            budget = None if objective == "fixed" else sent + r2 * total
        codec = "mosaic" if query.tensors["patches"].codec == "jpeg" else "raw"
        coded = {} if self._table is None else self._table.bytes
        first, second = coded.get(codec, (1.0, 1.0))
        threshold = number(query, "threshold", params["threshold"], 0.0, 1.0)
        terms = Terms(sent, total, threshold, r2, objective, budget, given > 1.0, second / first)
        return Ask(terms, _size(query), number(query, "afford", inf, 0.0, inf))

    def _supply(self, query: Query, memory: Memory) -> Work:
        first: Any = memory.recall(query.memory)
        assert isinstance(first, FirstRound)
        supplied = self._serving.supplied(query, len(first.wanted))
        params = {"size": _size(query)}
        if first.patches is None:
            new: Arrays = {"patches": supplied, "indices": first.wanted}
            assert first.tokens is not None
            key = (NAME, SUPPLY, len(supplied), "light", len(first.tokens))
            return Work(key, new, params, first)
        indices = np.concatenate((first.indices, first.wanted))
        order = np.argsort(indices)
        together = np.concatenate((first.patches, supplied))[order]
        arrays: Arrays = {"patches": together, "indices": indices[order]}
        return Work((NAME, SUPPLY, len(indices), first.recovery), arrays, params, first)

    def _word(self, query: Query, name: str) -> str:
        """Parameter `name` of `query`, or the profile's. Raises Refused("bad")."""
        value, choices = query.params.get(name, self._params[name]), self._choices[name]
        if value not in choices:
            raise Refused("bad", f"{name} is {value!r}, and here it can be {' or '.join(choices)}")
        return str(value)

    # Computing, on the accelerator.

    def _look(self, works: Sequence[Work], recovery: str) -> tuple[F32, F32, torch.Tensor | None]:
        """Classify: probabilities [B, classes], attention [B, N], and where some second round may
        be light the tokens it goes on from: [B, 1+N, dim], or [B, 1+K, dim] without recovery.
        """
        serving, vit = self._serving, self._serving.classifier
        after = 0 if self._light is None else self._light.config.after
        sent = [work.arrays["patches"] for work in works]
        places = [work.arrays["indices"] for work in works]
        whole = len(places[0]) == self._total  # nothing is missing; indices are 0..N-1
        indices = self._indices(places) if recovery == "none" and not whole else None
        drawn = indices is None and not whole
        pixels = serving.recover(sent, places) if drawn else serving.pixels(sent)
        if indices is None and all(work.params.get("second", "full") == "full" for work in works):
            return *serving.classify(pixels), None
        tokens = begin(vit, vit.embed(pixels, indices), after)
        seen, attention = vit.forward_features(tokens, after)
        if indices is not None:
            attention = spread(attention, indices, vit.config.grid)
        return _probabilities(vit.forward_head(seen)), to_numpy(attention), tokens

    def _lightly(self, works: Sequence[Work]) -> F32:
        """Probabilities [B, classes] by the new patches and the tokens of the first round."""
        assert self._light is not None
        serving = self._serving
        new = serving.pixels([work.arrays["patches"] for work in works])
        indices = self._indices([work.arrays["indices"] for work in works])
        tokens = torch.stack([work.remembered.tokens for work in works]).to(new.dtype)
        return _probabilities(self._light(serving.classifier, new, indices, tokens))

    def _indices(self, places: Sequence[Indices]) -> torch.Tensor:
        stacked = np.stack(places).astype(np.int64, copy=False)
        return torch.from_numpy(stacked).to(self._serving.device)

    def _judge(
        self,
        works: Sequence[Work],
        probabilities: F32,
        attention: F32,
        tokens: torch.Tensor | None,
    ) -> list[Outcome]:
        """End with round one, or ask for the patches that matter most (section 4.2)."""
        asks = [work.params["ask"] for work in works]
        sure = [float(row.max()) for row in probabilities]
        recovery = str(works[0].key[3])
        promises = self._allowances[recovery].decide(asks, sure, time.monotonic())
        outcomes = []
        for i, (work, promise) in enumerate(zip(works, promises, strict=True)):
            if not promise.extra:
                outcomes.append(Outcome(probabilities[i]))
                continue
            indices = work.arrays["indices"]
            looked = attention[i].copy()
            looked[indices] = -1.0  # sent already; attention is never negative
            wanted = np.sort(np.argsort(-looked, kind="stable")[: promise.extra])
            left: dict[str, Any]
            # Copies: a view would hold the whole packet, or the whole batch, it came in.
            if tokens is not None and work.params["second"] == "light":
                half = torch.float16 if tokens.is_cuda else tokens.dtype
                left = {"tokens": tokens[i].to(half, copy=True)}
            else:
                left = {"patches": work.arrays["patches"].copy()}
            first = FirstRound(recovery, indices, wanted, promise, **left)
            wants = patches.pack(wanted, self._total)
            outcomes.append(Outcome(probabilities[i], wants=wants, remember=first, size=first.size))
        return outcomes


def _probabilities(logits: torch.Tensor) -> F32:
    """Float32 [B, classes] on the CPU."""
    return to_numpy(F.softmax(logits.float(), dim=-1))


def _size(query: Query) -> int:
    """Bytes of the packet that `query` came in, about."""
    return HEAD + sum(len(tensor.data) for tensor in query.tensors.values())


def create(serving: Serving) -> Amot:
    """The strategy for one profile."""
    return Amot(serving)
