"""What a device makes of a sample: its embedding, and if it stays here the model's first layers.

Of a sentence, WordPiece by the tokenizers library and a lookup in numpy; of a picture, the model's
patch embedding. The mean over a sample's words or patches is its embedding; the tokens, with their
positions, are what the first layer is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.codec import encode
from common.errors import ConfigError, Refused
from common.messages import Tensor
from device import inference
from device.bundle import Bundle
from device.head import Head
from device.strategy import Frame

F32 = npt.NDArray[np.float32]
UNKNOWN = 1
"""The id of words that cannot be made of any pieces."""
ENDS = 2
"""Tokens around a sentence: [CLS] and [SEP]."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A sample as far as it is known without a layer of the model.

    `embedding` float32 [dim]. `tokens()` float32 [n, dim], the first layer's input. `sent()`: the
    sample for a server. `doubt`: None, or why an answer may be poor.
    """

    embedding: F32
    tokens: Callable[[], F32]
    sent: Callable[[], Mapping[str, Tensor]]
    doubt: str | None = None


class Front(Protocol):
    """From a frame to what is seen of it, and on through the layers that the device has."""

    def __call__(self, frame: Frame) -> Seen:
        """Raises Refused for a frame that nothing can be made of."""
        ...

    def layer(self, tokens: F32, place: int) -> F32:
        """Tokens [n, dim] through layer `place`, counted from 1. Raises ConfigError."""
        ...


class Text:
    """Sentences. `words` int8 [V, dim] times `scales` [V], `places` [S, dim], `norm` [2, dim]."""

    def __init__(
        self, tables: Mapping[str, npt.NDArray[Any]], words: Path, layers: Sequence[Path]
    ) -> None:
        """Raises ConfigError: no tokenizers library, no tokenizer, no runtime, no such layer."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                "text needs a tokenizer: pip install 'offboard[device-text]' "
                "(or pip install tokenizers)"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(words))
        except Exception as error:  # the library's errors are plain Exceptions
            raise ConfigError(f"{words.name} is no tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._layers = [inference.load(layer, "tokens", "out") for layer in layers]
        self._words = tables["words"]
        self._scales = tables["scales"].astype(np.float32)
        self._places = tables["places"].astype(np.float32)
        self._norm = tables["norm"].astype(np.float32)
        self._eps = float(tables["eps"])

    def layer(self, tokens: F32, place: int) -> F32:
        """Through one layer."""
        return self._layers[place - 1](tokens)

    def ids(self, text: str) -> npt.NDArray[np.uint16]:
        """Token ids uint16 [n], [CLS] first and [SEP] last, of as much as the model reads."""
        return self._cut(np.array(self._tokenizer.encode(text).ids, dtype=np.uint16))

    def _cut(self, whole: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        most = len(self._places)
        return whole if len(whole) <= most else np.append(whole[: most - 1], whole[-1])

    def __call__(self, frame: Frame) -> Seen:
        """Raises Refused where no word is known."""
        encoded = self._tokenizer.encode(frame.text)
        whole = np.array(encoded.ids, dtype=np.uint16)
        ids = self._cut(whole)
        read, total = len(ids) - ENDS, len(whole) - ENDS
        if (ids[1:-1] == UNKNOWN).all():
            raise Refused("bad", "none of its words is known: is it another language?")
        doubts = []
        if read < total:
            doubts.append(f"only the first {read} of {total} word pieces were read")
        # Of how many pieces each word is made; one that cannot be made of any counts as split.
        pieces = np.bincount([word for word in encoded.word_ids[1 : read + 1] if word is not None])
        strange = int((pieces > 1).sum() + (ids[1:-1] == UNKNOWN).sum())
        if 2 * strange > len(pieces):
            doubts.append(f"{strange} of {len(pieces)} words are not in its vocabulary")
        words = self._words[ids] * self._scales[ids, None]

        def tokens() -> F32:
            x = words + self._places[: len(ids)]
            x = x - x.mean(1, keepdims=True)
            x /= np.sqrt((x * x).mean(1, keepdims=True) + self._eps)
            return np.asarray(x * self._norm[0] + self._norm[1], np.float32)

        return Seen(
            words[1:-1].mean(0), tokens, lambda: {"ids": encode(ids)}, "; ".join(doubts) or None
        )


class Picture:
    """Pictures, by the layers of a vision transformer that merge nothing."""

    def __init__(self, head: Head, quality: int) -> None:
        self._head = head
        self._quality = quality

    def __call__(self, frame: Frame) -> Seen:
        """Tokens have their positions already, the same ones in every picture."""
        pixels = frame.pixels
        tokens = self._head.run(pixels, [])[0]
        return Seen(
            tokens[1:].mean(0),  # the class token is no patch
            lambda: tokens,
            lambda: {"frame": encode(pixels, "jpeg", quality=self._quality)},
        )

    def layer(self, tokens: F32, place: int) -> F32:
        """Through one layer."""
        return self._head.go_on(tokens, np.ones(len(tokens), np.float32), [0], place - 1)[0]


def load(bundle: Bundle, params: Mapping[str, Any]) -> Front:
    """The front that a strategy's `params` name files for.

    Of text: `front`, its tables, `words`, its tokenizer, `blocks`, its layers. Of pictures, which
    are sent at JPEG `quality`: `embed`, `blocks`, `last` and the `weights` they point into.
    Raises ConfigError, or Unavailable without the files.
    """
    blocks = [bundle.path(name) for name in params["blocks"]]
    if "words" not in params:
        bundle.path(params["weights"])  # the graphs hold none
        head = Head(bundle.path(params["embed"]), blocks, bundle.path(params["last"]))
        return Picture(head, int(params.get("quality", 75)))
    with np.load(bundle.path(params["front"])) as held:
        tables = {name: held[name] for name in held.files}
    return Text(tables, bundle.path(params["words"]), blocks)
