"""What DIMEC-DC and DIMEE share on the server: a model as layers with exits, of text or pictures.

A device asks the edge for n layers, or the cloud for all l: `params[TIER]`. A server with a cloud
peer passes on what is for the cloud and holds n layers itself; one without answers as the tier it
is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from common.errors import ConfigError, Refused
from common.messages import Query
from server.models.bert import Bert
from server.models.exits import Exits
from server.serving import F32, Serving, no_step, number, to_numpy
from server.strategy import CLOUD, EDGE, TIER, Arrays, Memory, Outcome, PassOn, Work

INPUT, HIDDEN = "input", "hidden"
LEAST = 3
"""Tokens of the shortest sentence: one between [CLS] and [SEP]."""
PAD = 0

Batch = tuple[torch.Tensor, torch.Tensor | None]
"""Tokens [b, n, dim], and a mask bool [b, 1, 1, n] of those that are no padding; None: all are."""


class Backbone(Protocol):
    """Layers counted from 1; behind some there is an exit, and behind the last, `depth`."""

    depth: int
    dim: int

    def has_exit(self, layer: int) -> bool:
        """Whether a sample can be classified behind `layer`."""
        ...

    def keep(self, layers: int) -> None:
        """Forget the layers behind the first `layers`, unless another strategy needs them."""
        ...

    def sample(self, query: Query) -> Arrays:
        """The sample in `query`, decoded. Raises Refused("bad")."""
        ...

    def fits(self, tokens: int) -> bool:
        """Whether a sample can have so many tokens."""
        ...

    def blank(self) -> Arrays:
        """A sample to warm with."""
        ...

    def begin(self, samples: Sequence[Arrays]) -> Batch:
        """The first layer's input."""
        ...

    def layer(self, batch: Batch, place: int) -> Batch:
        """Through layer `place`."""
        ...

    def classify(self, batch: Batch, place: int) -> torch.Tensor:
        """Logits [b, classes] behind layer `place`."""
        ...


class Text:
    """Sentences as "ids" uint16 [n]: what the device's tokenizer made of them."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._model = serving.model("bert", Bert)
        config = self._model.config
        self.depth, self.dim = config.depth, config.dim
        self._most, self._vocabulary = config.positions, config.vocabulary
        self._exits = {*config.exits, config.depth}

    def has_exit(self, layer: int) -> bool:
        return layer in self._exits

    def keep(self, layers: int) -> None:
        del self._model.encoder.layer[layers:]

    def sample(self, query: Query) -> Arrays:
        shape = self._serving.tensor(query, "ids").shape
        if len(shape) != 1 or not self.fits(shape[0]):
            raise Refused("bad", f"ids is {shape}: give [n], n from {LEAST} to {self._most}")
        ids = self._serving.array(query, "ids", "uint16", shape)
        if int(ids.max()) >= self._vocabulary or not ids.all():
            raise Refused("bad", f"ids are not all from 1 to {self._vocabulary - 1}")
        return {"ids": ids}

    def fits(self, tokens: int) -> bool:
        return LEAST <= tokens <= self._most

    def blank(self) -> Arrays:
        return {"ids": np.ones(self._most, np.uint16)}

    def begin(self, samples: Sequence[Arrays]) -> Batch:
        rows = [sample["ids"] for sample in samples]
        ids = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
        for row, each in zip(ids, rows, strict=True):
            row[: len(each)] = each
        shown = torch.from_numpy(ids).to(self._serving.device)
        mask = None if ids.all() else (shown != PAD)[:, None, None, :]
        return self._model.embeddings(shown), mask

    def layer(self, batch: Batch, place: int) -> Batch:
        return self._model.run(batch[0], place - 1, place, batch[1]), batch[1]

    def classify(self, batch: Batch, place: int) -> torch.Tensor:
        return self._model.classify(batch[0], place, batch[1])


class Picture:
    """Pictures as "frame", a JPEG or WebP; the vision transformer with the profile's exits."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._model, self._exits = serving.classifier, serving.model("exits", Exits)
        config = self._model.config
        self.depth, self.dim = config.depth, config.dim
        self._count = 1 + config.grid**2

    def has_exit(self, layer: int) -> bool:
        return layer == self.depth or layer <= self._exits.config.layers

    def keep(self, layers: int) -> None:
        """Nothing goes: every strategy of pictures classifies by the same model."""

    def sample(self, query: Query) -> Arrays:
        if self._serving.tensor(query, "frame").codec not in ("jpeg", "webp"):
            raise Refused("bad", "frame must be a JPEG or WebP")
        return {"patches": self._serving.scaled_frame(query)}

    def fits(self, tokens: int) -> bool:
        return tokens == self._count

    def blank(self) -> Arrays:
        shape = self._serving.input
        return {"patches": np.zeros((shape.patches, shape.patch**2 * shape.channels), np.uint8)}

    def begin(self, samples: Sequence[Arrays]) -> Batch:
        pixels = self._serving.pixels([sample["patches"] for sample in samples])
        return self._model.embed(pixels), None

    def layer(self, batch: Batch, place: int) -> Batch:
        return self._model.blocks[place - 1](batch[0]), None

    def classify(self, batch: Batch, place: int) -> torch.Tensor:
        if place == self.depth:
            return self._model.forward_head(batch[0])
        return self._exits(batch[0], place)  # type: ignore[no-any-return]


class Tiers:
    """Steps "input", the sample, and "hidden", float16 [n, dim]: tokens behind the device's layers.

    With `early` a sample that the edge is
    asked for leaves at the first exit behind the device's whose confidence reaches `alpha`.
    """

    def __init__(self, serving: Serving, name: str, *, early: bool) -> None:
        """Raises ConfigError where the profile's layers do not fit its model."""
        self._serving, self._name, self._early = serving, name, early
        kinds = {model.kind for model in serving.profile.models.values()}
        self._model: Backbone = Text(serving) if "bert" in kinds else Picture(serving)
        params = serving.params(name)
        self._mobile, self._edge = int(params["mobile"]), int(params["edge"])
        self._alpha = params.get("alpha", 0.9)
        last = range(self._mobile + 1 if early else self._edge, self._edge + 1)
        if not 0 < self._mobile < self._edge <= self._model.depth or not all(
            self._model.has_exit(layer) for layer in last
        ):
            raise ConfigError(
                f"profile {serving.profile.name!r}: {name} wants exits behind layers "
                f"{self._mobile} and {self._edge} of a model of {self._model.depth}"
            )
        if serving.edge:  # both strategies share one model
            offered = serving.profile.manifest.strategies.values()
            self._model.keep(max(int(each.get("edge", 0)) for each in offered))

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and check the sample. Raises Refused("bad" | "unknown"), or PassOn at an edge."""
        if query.step not in (INPUT, HIDDEN):
            raise no_step(query, INPUT, HIDDEN)
        tier: Any = query.params.get(TIER, CLOUD)
        if tier not in (EDGE, CLOUD):
            raise Refused("bad", f"{TIER} is {str(tier)[:20]!r}, not edge or cloud")
        if tier == CLOUD and self._serving.edge:
            raise PassOn
        alpha = number(query, "alpha", self._alpha, 0.0, 1.0) if self._early else 1.0
        if query.step == INPUT:
            return Work((self._name, tier, 0), self._model.sample(query), {"alpha": alpha})
        hidden = self._hidden(query)
        key = (self._name, tier, self._mobile, len(hidden))
        return Work(key, {"hidden": hidden}, {"alpha": alpha})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Run the layers that are left of the tier asked for."""
        tier, done = works[0].key[1], int(str(works[0].key[2]))
        if done:
            stacked = np.stack([work.arrays["hidden"] for work in works])
            batch: Batch = (torch.from_numpy(stacked).to(self._serving.device), None)
        else:
            batch = self._model.begin([work.arrays for work in works])
        last = self._edge if tier == EDGE else self._model.depth
        rows: list[F32 | None] = [None] * len(works)
        left = list(range(len(works)))
        for place in range(done + 1, last + 1):
            batch = self._model.layer(batch, place)
            if place < last and not (self._early and tier == EDGE and place > self._mobile):
                continue
            answers = to_numpy(torch.softmax(self._model.classify(batch, place).float(), dim=-1))
            stays = []
            for at, row in enumerate(answers):
                if place == last or row.max() >= works[left[at]].params["alpha"]:
                    rows[left[at]] = row
                else:
                    stays.append(at)
            if stays and len(stays) < len(left):
                mask = batch[1]
                batch = (batch[0][stays], None if mask is None else mask[stays])
            left = [left[at] for at in stays]
            if not left:
                break
        return [Outcome(row) for row in rows if row is not None]

    @torch.inference_mode()
    def warm(self) -> None:
        """All the layers that are held, per batch size worth it."""
        tier = EDGE if self._serving.edge else CLOUD
        blank = Work((self._name, tier, 0), self._model.blank(), {"alpha": 1.0})
        for size in self._serving.warm_sizes:
            self.forward([blank] * size)

    def _hidden(self, query: Query) -> F32:
        shape = self._serving.tensor(query, "hidden").shape
        dim = self._model.dim
        if len(shape) != 2 or shape[1] != dim or not self._model.fits(shape[0]):
            raise Refused("bad", f"hidden is {shape}, not the tokens [n, {dim}] of a sample")
        hidden: Any = self._serving.array(query, "hidden", "float16", shape).astype(np.float32)
        if not np.isfinite(hidden).all():
            raise Refused("bad", "hidden is not all finite")
        return hidden  # type: ignore[no-any-return]
