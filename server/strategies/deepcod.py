"""DeepCOD on the server: symbols to what lay at the cut, and the rest of the model on that.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.2 and 3.4. The code book and the
centres are those of the encoder's file in the device bundle, so both sides agree to the bit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common.columns import ColumnBook
from common.errors import ConfigError, Refused
from common.messages import Query
from server.models.backbone import KINDS, backbone
from server.models.deepcod import DeepCOD, Rates
from server.serving import F32, U8, Serving, no_step, number, to_numpy
from server.strategy import Memory, Outcome, Work

NAME = "deepcod"
STEP = "symbols"


@dataclass(frozen=True, slots=True)
class Rate:
    """One of the profile's codecs and the book that its symbols are coded by."""

    codec: DeepCOD
    book: ColumnBook

    @property
    def longest(self) -> int:
        """Bytes of the longest code that one frame can have."""
        return self.book.longest(math.prod(self.codec.config.grid))


class DeepCod:
    """Step "symbols": "code" uint8 [n], for the point and the rate that the query names."""

    def __init__(self, serving: Serving) -> None:
        params = serving.params(NAME)
        kind = str(params.get("backbone"))
        if kind not in KINDS:
            raise ConfigError(f"{NAME}: backbone {kind!r} is none of {', '.join(KINDS)}")
        self._serving = serving
        self._default = (params.get("point", "input"), params.get("rate", 1))
        self._backbone = backbone(serving.model(kind, KINDS[kind]))
        codecs = serving.model("deepcod", Rates)
        self._rates = {
            (point["name"], rate): _rate(serving, codecs, point["name"], rate, files)
            for point in params.get("points", ())
            for rate, files in enumerate(point["rates"], start=1)
        }
        foreign = {point for point, _ in self._rates} - set(self._backbone.points)
        if foreign or not self._rates:
            raise ConfigError(f"{NAME}: the backbone has no point {', '.join(foreign) or 'at all'}")

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the symbols. Raises Refused("bad" | "unknown")."""
        if query.step != STEP:
            raise no_step(query, STEP)
        point = query.params.get("point", self._default[0])
        rate = number(query, "rate", self._default[1], 1, 16)
        chosen = self._rates.get((point, rate)) if isinstance(point, str) else None  # type: ignore[arg-type]
        if chosen is None:
            raise Refused("bad", f"there is no rate {rate:g} at the point {str(point)[:40]!r}")
        tensor = self._serving.tensor(query, "code")
        if len(tensor.shape) != 1 or tensor.shape[0] > chosen.longest or tensor.codec != "raw":
            raise Refused("bad", f"code is {tensor.codec} {tensor.shape}, not raw [n] of a frame")
        code = self._serving.array(query, "code", "uint8", tensor.shape)
        try:
            symbols = chosen.book.decode(code.data, *chosen.codec.config.grid)
        except ValueError as error:
            raise Refused("bad", f"code: {error}") from None
        return Work((NAME, point, int(rate)), {"symbols": symbols})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Restore and classify the frames of works of one point and rate."""
        _, point, rate = works[0].key
        codec = self._rates[point, rate].codec  # type: ignore[index]
        symbols: U8 = np.stack([work.arrays["symbols"] for work in works])
        restored = codec.decode(torch.from_numpy(symbols).to(self._serving.device, torch.int64))
        logits = self._backbone.behind(restored, str(point))[-1]
        probabilities: F32 = to_numpy(F.softmax(logits.float(), dim=-1))
        return [Outcome(row) for row in probabilities]

    def warm(self) -> None:
        """Every point and rate, per batch size worth it."""
        for place, rate in self._rates.items():
            shape = rate.codec.config
            blank = np.zeros((shape.channels, *shape.grid), np.uint8)
            for size in self._serving.warm_sizes:
                self.forward([Work((NAME, *place), {"symbols": blank})] * size)


def _rate(serving: Serving, codecs: Rates, point: str, rate: int, files: Mapping[str, Any]) -> Rate:
    """The codec with the centres and the book in the encoder's file of the bundle."""
    path = str(files.get("npz"))
    try:
        codec = codecs.codec(rate, point)
        with np.load(io.BytesIO(serving.profile.read(path))) as file:
            centres, book = file["centres"], ColumnBook.read(file)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path} is no encoder: {error}") from None
    except IndexError:
        raise ConfigError(f"{NAME}: the weights have no rate {rate} at {point}") from None
    shape = codec.config
    if len(centres) != shape.levels or (book.channels, book.levels) != (
        shape.channels, shape.levels
    ):  # fmt: skip
        raise ConfigError(f"{path} is of another shape than the decoder")
    codec.quantizer.centres.data.copy_(torch.from_numpy(centres))
    return Rate(codec, book)


def create(serving: Serving) -> DeepCod:
    """The strategy for one profile."""
    return DeepCod(serving)
