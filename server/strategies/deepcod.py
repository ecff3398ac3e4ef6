"""DeepCOD on the server: symbols to a restored picture, and the rest of the model on that.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.2 and 3.4. The code book and the
centres are those of the encoder's file in the device bundle, so both sides agree to the bit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import ConfigError, Refused
from common.huffman import LONGEST, Book
from common.messages import Query
from server.models.backbone import layers_of
from server.models.cnn import Cnn
from server.models.deepcod import DeepCOD, Rates
from server.models.vit import VisionTransformer
from server.serving import F32, U8, Serving, no_step, number, to_numpy
from server.strategy import Memory, Outcome, Work

NAME = "deepcod"
STEP = "symbols"
BACKBONES = {"cnn": Cnn, "vit": VisionTransformer}


@dataclass(frozen=True, slots=True)
class Rate:
    """One of the profile's codecs and the book that its symbols are coded by."""

    codec: DeepCOD
    book: Book

    @property
    def longest(self) -> int:
        """Bytes of the longest code that one frame can have."""
        shape = self.codec.config
        pairs = -(-math.prod(shape.grid) // 2)
        return -(-shape.channels * pairs * LONGEST // 8)


class DeepCod:
    """Step "symbols": "code" uint8 [n], for the rate that the query names."""

    def __init__(self, serving: Serving) -> None:
        params = serving.params(NAME)
        kind = params.get("backbone")
        if kind not in BACKBONES:
            raise ConfigError(f"{NAME}: backbone {kind!r} is none of {', '.join(BACKBONES)}")
        self._serving = serving
        self._default = params.get("rate", 1)
        self._layers = layers_of(serving.model(kind, BACKBONES[kind]))
        codecs = serving.model("deepcod", Rates)
        self._rates = {
            rate: _rate(serving, codecs.codec(rate), params.get(f"npz-{rate}", ""))
            for rate in range(1, len(codecs.codecs) + 1)
        }

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode the symbols. Raises Refused("bad" | "unknown")."""
        if query.step != STEP:
            raise no_step(query, STEP)
        rate = number(query, "rate", self._default, 1, len(self._rates))
        if rate not in self._rates:
            raise Refused("bad", f"rate is {rate:g}, not a whole number")
        chosen = self._rates[int(rate)]
        tensor = self._serving.tensor(query, "code")
        if len(tensor.shape) != 1 or tensor.shape[0] > chosen.longest or tensor.codec != "raw":
            raise Refused("bad", f"code is {tensor.codec} {tensor.shape}, not raw [n] of a frame")
        code = self._serving.array(query, "code", "uint8", tensor.shape)
        grid = chosen.codec.config.grid
        try:
            symbols = chosen.book.decode(code.data, math.prod(grid))
        except ValueError as error:
            raise Refused("bad", f"code: {error}") from None
        return Work((NAME, STEP, int(rate)), {"symbols": symbols.reshape(-1, *grid)})

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Restore and classify the frames of works of one rate."""
        codec = self._rates[works[0].key[2]].codec  # type: ignore[index]
        symbols: U8 = np.stack([work.arrays["symbols"] for work in works])
        restored = codec.decode(torch.from_numpy(symbols).to(self._serving.device, torch.int64))
        logits = self._layers((restored + 1) / 2)[-1]
        probabilities: F32 = to_numpy(F.softmax(logits.float(), dim=-1))
        return [Outcome(row) for row in probabilities]

    def warm(self) -> None:
        """Every rate, per batch size worth it."""
        for place, rate in self._rates.items():
            shape = rate.codec.config
            blank = np.zeros((shape.channels, *shape.grid), np.uint8)
            for size in self._serving.warm_sizes:
                self.forward([Work((NAME, STEP, place), {"symbols": blank})] * size)


def _rate(serving: Serving, codec: DeepCOD, path: str) -> Rate:
    """The codec with the centres and the book in the encoder's file `path` of the bundle."""
    try:
        with np.load(io.BytesIO(serving.profile.read(path))) as file:
            centres, book = file["centres"], Book(file["lengths"])
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path} is no encoder: {error}") from None
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
