"""Writes the first layers of a classifier as ONNX, for strategies that split the model.

``rows`` computes the tokens of a frame before their positions are added; PO and MBC share it.
``po`` and ``mbc`` go on from there. The first two point into the classifier's weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from profiles.graph import Graph, floats, folded, macs, pictures
from profiles.pointing import Pointing
from server.models.bottleneck import Bottleneck
from server.models.stem import LocalStem, Mixer
from server.models.vit import Attention, Block, PatchEmbed, VisionTransformer

FRAME, EMBEDDING, TOKENS, LATENT = "frame", "embedding", "tokens", "latent"


def rows_onnx(vit: VisionTransformer, weights: Path) -> tuple[Path, int]:
    """The embedding: ``frame`` uint8 [1, H, W, 3] to ``embedding`` float32 [1, N, dim].

    Written beside ``weights``, the file of ``vit``. Returns its path and the multiply-adds.
    """
    config, g = vit.config, Pointing(vit, weights)
    path = weights.with_name(f"{weights.stem}-rows.onnx")
    g.reshape(embedding(g, vit), EMBEDDING, 1, config.grid**2, config.dim)
    frame = pictures(FRAME, 1, config.image, config.image, config.channels)
    return path, macs(g.write(path, [frame], [floats(EMBEDDING, 1, config.grid**2, config.dim)]))


def embedding(g: Graph, vit: VisionTransformer) -> str:
    """Adds ``frame`` uint8 [1, H, W, 3] to rows float32 [N, dim], before their positions.

    A clip is a frame too: its own lie below each other, and ``tubelet`` of them make a row.
    """
    config = vit.config
    grid, side, count, deep = config.grid, config.patch, config.places, config.tubelet
    channels = deep * config.channels
    mean = (255 * vit.mean[: config.channels]).repeat(deep).view(1, channels, 1, 1)
    std = (255 * vit.std[: config.channels]).repeat(deep).view(1, channels, 1, 1)
    x = g.node("Cast", [FRAME], "float", to=TensorProto.FLOAT)
    x = g.reshape(x, "cells", -1, deep, grid, side, grid, side, config.channels)
    x = g.node("Transpose", [x], "cells.planes", perm=[0, 2, 4, 1, 6, 3, 5])
    x = g.reshape(x, "patches", count, channels, side, side)
    x = g.node("Sub", [x, g.constant("mean", mean.numpy())], "centred")
    x = g.node("Div", [x, g.constant("std", std.numpy())], "normalised")
    if isinstance(vit.patch_embed, LocalStem):
        x = _stem(g, x, vit.patch_embed)
    else:
        assert isinstance(vit.patch_embed, PatchEmbed)
        x = g.node(
            "Transpose", [x], "rows", perm=[0, 2, 3, 1]
        )  # a vector is (row, column, channel)
        x = g.linear(g.reshape(x, "vectors", count, -1), "projected", vit.patch_embed.proj)
    for place, mixer in enumerate(vit.mixers):
        assert isinstance(mixer, Mixer)
        x = _mixer(g, x, f"mixer{place}", mixer, grid)
    return x


def po_onnx(vit: VisionTransformer, weights: Path) -> tuple[Path, int]:
    """Positions and the first block: ``embedding`` [1, N, dim] to ``tokens`` [1, 1+N, dim].

    Written beside ``weights``, the file of ``vit``. Returns its path and the multiply-adds.
    """
    g, n, dim = Pointing(vit, weights), vit.config.grid**2, vit.config.dim
    path = weights.with_name(f"{weights.stem}-po.onnx")
    with torch.no_grad():
        first = (vit.cls_token + vit.pos_embed[:, :1])[0]
    x = g.reshape(EMBEDDING, "plain", n, dim)
    x = g.node("Add", [x, g.constant("places", vit.pos_embed[0, 1:].detach().numpy())], "placed")
    x = g.node("Concat", [g.constant("first", first.numpy()), x], "all", axis=0)
    block = vit.blocks[0]
    assert isinstance(block, Block)
    g.reshape(_block(g, x, block, 1 + n), TOKENS, 1, 1 + n, dim)
    whole = floats(TOKENS, 1, 1 + n, dim)
    return path, macs(g.write(path, [floats(EMBEDDING, 1, n, dim)], [whole]))


def mbc_onnx(model: Bottleneck, path: Path) -> int:
    """The encoder: ``embedding`` [1, N, dim] to ``latent`` float32 [1, channels, N], to be rounded.

    Writes ``path`` and returns the multiply-adds.
    """
    g, config = Graph(), model.config
    n, top = config.grid**2, np.array(config.levels - 1, np.float32)
    x = g.linear(g.reshape(EMBEDDING, "rows", n, config.dim), "squeezed", model.squeeze)
    low, high = g.constant("low", np.array(0, np.float32)), g.constant("high", top)
    x = g.node("Clip", [x, low, high], "clipped")
    x = g.node("Transpose", [x], "planes", perm=[1, 0])
    g.reshape(x, LATENT, 1, config.channels, n)
    return g.save(path, "mbc", floats(EMBEDDING, 1, n, config.dim),
                  floats(LATENT, 1, config.channels, n))  # fmt: skip


def _stem(g: Graph, x: str, stem: LocalStem) -> str:
    for place in range(1, 5):
        conv, norm = getattr(stem, f"conv{place}"), getattr(stem, f"norm{place}")
        weight, bias = folded(conv, norm)
        names = [g.constant(f"stem{place}.weight", weight), g.constant(f"stem{place}.b", bias)]
        y = g.node("Conv", [x, *names], f"stem{place}.conv", strides=conv.stride, pads=[1] * 4)
        y = g.node("Relu", [y], f"stem{place}")
        x = y if place % 2 else g.node("Add", [x, y], f"stem{place}.sum")
    return g.linear(g.node("Flatten", [x], "stem.flat"), "stem", stem.proj)


def _mixer(g: Graph, x: str, name: str, mixer: Mixer, grid: int) -> str:
    dim = mixer.conv.out_channels
    y = g.layer_norm(x, f"{name}.norm", mixer.norm)
    y = g.node("Transpose", [y], f"{name}.planes", perm=[1, 0])
    y = g.reshape(y, f"{name}.map", 1, dim, grid, grid)
    weight = g.weight(f"{name}.conv.weight", mixer.conv.weight)
    assert isinstance(mixer.conv.bias, nn.Parameter)
    bias = g.weight(f"{name}.conv.b", mixer.conv.bias)
    y = g.node("Conv", [y, weight, bias], f"{name}.conv", pads=[1] * 4)
    y = g.reshape(y, f"{name}.flat", dim, grid**2)
    y = g.gelu(g.node("Transpose", [y], f"{name}.rows", perm=[1, 0]), f"{name}.gelu")
    return g.node("Add", [x, g.linear(y, f"{name}.proj", mixer.proj)], name)


def _block(g: Graph, x: str, block: Block, n: int) -> str:
    y = _attention(g, g.layer_norm(x, "norm1", block.norm1), block.attn, n)
    x = g.node("Add", [x, y], "attended")
    y = g.gelu(g.linear(g.layer_norm(x, "norm2", block.norm2), "fc1", block.mlp.fc1), "gelu")
    return g.node("Add", [x, g.linear(y, "fc2", block.mlp.fc2)], "block")


def _attention(g: Graph, x: str, attention: Attention, n: int) -> str:
    dim, heads = attention.proj.in_features, attention.heads
    y = g.reshape(g.linear(x, "qkv", attention.qkv), "parts", n, 3, heads, dim // heads)
    scale = g.constant("scale", np.array((dim // heads) ** -0.5, np.float32))
    q, k, v = (
        g.node("Gather", [y, g.constant(f"part{place}", np.array(place))], name, axis=1)
        for place, name in enumerate("qkv")
    )
    q = g.node("Mul", [g.node("Transpose", [q], "q.heads", perm=[1, 0, 2]), scale], "q.scaled")
    k = g.node("Transpose", [k], "k.heads", perm=[1, 2, 0])
    v = g.node("Transpose", [v], "v.heads", perm=[1, 0, 2])
    row = g.node("Softmax", [g.node("MatMul", [q, k], "scores")], "row", axis=-1)
    y = g.node("Transpose", [g.node("MatMul", [row, v], "seen")], "seen.rows", perm=[1, 0, 2])
    return g.linear(g.reshape(y, "joined", n, dim), "attn", attention.proj)
