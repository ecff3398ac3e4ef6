"""A classifier seen from behind a codec: pictures in, every layer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from server.models.cnn import Cnn
from server.models.vit import VisionTransformer

Layers = Callable[[Tensor], Sequence[Tensor]]
"""Pictures [b, 3, h, w] in [0, 1] to what each layer makes of them, the logits last."""


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
