"""The front of a vision transformer on the device: as many of its blocks as are wanted.

Each part is one ONNX graph (`profiles.export_janus` writes them), whose session is opened when it
is first needed: a device that sends its frames after two blocks never holds the other ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device import inference
from device.inference import F32
from device.strategy import Pixels


class Head:
    """`embed`, `blocks` and `last`: files of the parts, in the order they run."""

    def __init__(self, embed: Path, blocks: Sequence[Path], last: Path) -> None:
        """Raises ConfigError: no runtime, or a first part that is none."""
        self._embed = inference.load(embed, "frame", "tokens")
        self._blocks = list(blocks)
        self._last = last
        self._open: list[Any] = []

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def open(self) -> None:
        """Open every part. Raises ConfigError for one that cannot be loaded."""
        self._block(self.layers - 1)
        _ = self._final

    def run(self, pixels: Pixels, merges: Iterable[int]) -> tuple[F32, F32]:
        """Tokens [n, d] and their sizes [n] after as many blocks, the i-th merging so many.

        Raises ConfigError for a part that cannot be loaded.
        """
        tokens = self._embed(pixels)
        return self.go_on(tokens, np.ones(len(tokens), np.float32), merges)

    def go_on(
        self, tokens: F32, sizes: F32, merges: Iterable[int], after: int = 0
    ) -> tuple[F32, F32]:
        """Tokens and sizes behind block `after` to those behind as many blocks more as `merges`."""
        for place, r in enumerate(merges, after):
            given = {"tokens": tokens, "sizes": sizes, "merge": np.array([r], np.int64)}
            tokens, sizes = self._block(place).run(["tokens.out", "sizes.out"], given)
        return tokens, sizes

    def classify(self, tokens: F32, sizes: F32) -> npt.NDArray[np.float32]:
        """The probabilities [classes] that tokens behind the last block give."""
        given = {"tokens": tokens, "sizes": sizes}
        (probabilities,) = self._final.run(["probabilities"], given)
        return np.asarray(probabilities, dtype=np.float32)

    def _block(self, place: int) -> Any:
        while len(self._open) <= place:
            self._open.append(inference.session(self._blocks[len(self._open)]))
        return self._open[place]

    @cached_property
    def _final(self) -> Any:
        return inference.session(self._last)
