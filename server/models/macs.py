"""How many multiply-adds the models take for one frame, counted from their shapes.

Counted are matrix products and convolutions, those of attention included, as they are computed: a
convolution over a grid pays for every place of it. Norms, activations and softmax are left out, as
is usual. One multiply-add is two FLOPs.
"""

from __future__ import annotations

from server.models.light import LightConfig
from server.models.mae import MAEConfig
from server.models.vit import ViTConfig


def classify(config: ViTConfig, patches: int | None = None) -> int:
    """One classification of ``patches`` of a frame.

    None: of all, the full inference that others are compared with. With it the row of the class
    token's attention, which A-MOT asks for.
    """
    n = config.grid**2
    k = n if patches is None else patches
    row, head = (1 + k) * config.dim, config.dim * config.classes
    mixers = config.mixers if config.stem == "local" else 0
    return (
        _stem(config, k) + mixers * _mixer(config.dim, n, k)
        + config.depth * _block(config.dim, config.mlp_ratio, 1 + k) + row + head
    )  # fmt: skip


def recover(config: MAEConfig, visible: int) -> int:
    """The recovery of a frame from ``visible`` patches."""
    n = config.grid**2
    width, ends = config.decoder_dim, config.patch_size * (config.dim * visible)
    return (
        ends + config.depth * _block(config.dim, config.mlp_ratio, 1 + visible)
        + (1 + visible) * config.dim * width
        + config.decoder_depth * _block(width, config.mlp_ratio, 1 + n)
        + (1 + n) * width * config.patch_size
    )  # fmt: skip


def light(config: LightConfig, vit: ViTConfig, new: int, first: int | None = None) -> int:
    """The light inference of ``new`` patches beside a classifier of shape ``vit``.

    ``first``: patches of a first round that recovered nothing; None: it has tokens of all.
    """
    dim, ratio = config.dim, config.mlp_ratio
    mixers = vit.mixers if vit.stem == "local" else 0
    encoder = (
        _stem(vit, new) + mixers * _mixer(dim, new, new)
        + config.after * _block(vit.dim, vit.mlp_ratio, 1 + new)
    )  # fmt: skip
    old = vit.grid**2 if first is None else first
    tokens = 1 + (new if not config.first else old if first is None else old + new)
    lines = ((1 + new) + (1 + old if config.first else 0)) * dim**2 if config.linear else 0
    whole = (config.layers - 1) * _block(dim, ratio, tokens)
    last = _block(dim, ratio, tokens, queries=1)
    return encoder + lines + whole + last + dim * config.classes


def _block(dim: int, mlp_ratio: float, tokens: int, queries: int | None = None) -> int:
    """A transformer block over ``tokens``, computed for ``queries`` of them (None: for all)."""
    queries = tokens if queries is None else queries
    project = 2 * tokens * dim**2 + 2 * queries * dim**2  # key and value; query and output
    attend = 2 * queries * tokens * dim
    return project + attend + 2 * queries * dim * int(dim * mlp_ratio)


def _stem(config: ViTConfig, patches: int) -> int:
    """The embedding of ``patches``, without the mixers."""
    if config.stem == "linear":
        return patches * config.patch_size * config.dim
    w, half, quarter = config.stem_width, (config.patch // 2) ** 2, (config.patch // 4) ** 2
    first = half * 9 * (config.channels * w + w * w)
    second = quarter * 9 * (w * 2 * w + 4 * w * w)
    return patches * (first + second + quarter * 2 * w * config.dim)


def _mixer(dim: int, convolved: int, tokens: int) -> int:
    """A mixer whose convolution gives ``convolved`` places, of which ``tokens`` are there."""
    return convolved * 9 * dim**2 + tokens * dim**2
