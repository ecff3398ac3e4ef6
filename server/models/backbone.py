"""A model seen from behind a codec: where it can be cut, and every layer after the cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from server.models.cnn import Cnn
from server.models.recogniser import Recogniser
from server.models.vit import VisionTransformer

Layers = Callable[[Tensor], Sequence[Tensor]]
"""Pictures [b, 3, h, w] in [0, 1] to what each layer makes of them, the logits last."""


class Backbone(Protocol):
    """What a model that a codec goes before can do.

    `points`: where it can be cut, the first at its input, the others before a block each.
    """

    points: tuple[str, ...]

    def before(self, x: Tensor, point: str) -> Tensor:
        """What lies at `point` of the model's input `x`: [b, features, *size]."""
        ...

    def behind(self, x: Tensor, point: str) -> Sequence[Tensor]:
        """Every layer's output from what lies at `point` on, the logits [b, classes] last."""
        ...


class Whole:
    """A ViT, which is cut at its input alone: pictures [b, 3, h, w] in [0, 1]."""

    points: tuple[str, ...] = ("input",)

    def __init__(self, model: VisionTransformer) -> None:
        self._layers = layers_of(model)

    def before(self, x: Tensor, point: str) -> Tensor:
        """The pictures."""
        return x

    def behind(self, x: Tensor, point: str) -> Sequence[Tensor]:
        """All layers."""
        return self._layers(x)


KINDS: Mapping[str, type[nn.Module]] = {
    "cnn": Cnn,
    "vit": VisionTransformer,
    "recogniser": Recogniser,
}
"""The kinds of models that a codec may go before."""


def backbone(model: nn.Module) -> Backbone:
    """A model of one of KINDS, ready to be cut. Raises TypeError for another."""
    if isinstance(model, VisionTransformer):
        return Whole(model)
    if not isinstance(model, tuple(KINDS.values())):
        raise TypeError(f"no codec goes before a {type(model).__name__}")
    return model  # type: ignore[return-value]


def layers_of(model: nn.Module) -> Layers:
    """All layers of a model of kind "cnn" or "vit". Raises TypeError for another."""
    if isinstance(model, Cnn):
        return model.layers
    if isinstance(model, VisionTransformer):
        classifier = model

        def layers(pictures: Tensor) -> list[Tensor]:
            tokens = [classifier.embed(as_patches(pictures, classifier.config.patch))]
            for block in classifier.blocks:
                tokens.append(block(tokens[-1]))
            return [*tokens, classifier.forward_head(tokens[-1])]

        return layers
    raise TypeError(f"no codec goes before a {type(model).__name__}")


def as_patches(pictures: Tensor, side: int) -> Tensor:
    """[b, c, h, w] as patches [b, n, side * side * c], in (row, column, channel) order."""
    b, c, h, w = pictures.shape
    tiles = pictures.reshape(b, c, h // side, side, w // side, side)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, side * side * c)
