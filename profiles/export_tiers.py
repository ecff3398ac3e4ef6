"""Writes what a device needs of a text model with exits: its first layers, its words, its exits.

One ONNX file per layer, ``tokens`` float32 [1, n, dim] to ``out`` of the same shape for any n, so
that a sample can leave behind any of them. Words and exits are arrays that numpy handles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from profiles.graph import Graph, floats
from server.models.bert import Bert, Exit, Layer

TOKENS, OUT = "tokens", "out"
FRONT, EXITS, WORDS = "device/front.npz", "device/exits.npz", "device/tokenizer.json"


def layer_file(place: int) -> str:
    """Where layer ``place``, counted from 1, lies in a bundle."""
    return f"device/layer-{place}.onnx"


def round_words(model: Bert) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``model``'s words to int8 times a scale per word, in place; returns those two.

    The device's table takes half the bytes of float16, and both ends have the same words.
    """
    table = model.embeddings.word_embeddings.weight.data
    scales = (table.abs().amax(1, keepdim=True) / 127).clamp(min=1e-6).half().float()
    words = (table / scales).round().clamp(-127, 127)
    table.copy_(words * scales)
    return words.to(torch.int8), scales[:, 0].half()


def front_npz(model: Bert, path: Path) -> None:
    """The tables of ``device.front.Text``; rounds ``model``'s words (``round_words``)."""
    words, scales = round_words(model)
    parts = model.embeddings
    places = parts.position_embeddings.weight + parts.token_type_embeddings.weight[0]
    norm = torch.stack((parts.LayerNorm.weight, parts.LayerNorm.bias))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path, words=words.numpy(), scales=scales.numpy(), places=_half(places), norm=_half(norm),
        eps=np.float32(model.config.eps),
    )  # fmt: skip


def exits_npz(model: Bert, layers: int, path: Path) -> None:
    """The exits behind the first ``layers`` layers, for ``device.tiers.Exits``.

    Raises ValueError for one that is not there, or that looks at the first token by a pooler.
    """
    if model.config.pool != "mean" or not set(range(1, layers + 1)) <= set(model.config.exits):
        raise ValueError(f"a device's exits are means of tokens, behind each of {layers} layers")
    exits = [model.exits[str(place)] for place in range(1, layers + 1)]
    heads = [exit.classifier for exit in exits if isinstance(exit, Exit)]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, weights=_half(torch.stack([head.weight.T for head in heads])),
        biases=_half(torch.stack([head.bias for head in heads])), eps=np.float32(model.config.eps),
    )  # fmt: skip


def layer_onnx(layer: Layer, path: Path) -> None:
    """One layer, for sentences of any length."""
    g, attention = Graph(), layer.attention
    dim, heads = attention.output.dense.out_features, attention.self.heads
    x = g.reshape(TOKENS, "rows", -1, dim)
    parts = {}
    for name in ("query", "key", "value"):
        y = g.linear(x, name, getattr(attention.self, name))
        y = g.reshape(y, f"{name}.parts", -1, heads, dim // heads)
        order = [1, 2, 0] if name == "key" else [1, 0, 2]
        parts[name] = g.node("Transpose", [y], f"{name}.heads", perm=order)
    scale = g.constant("scale", np.array((dim // heads) ** -0.5, np.float32))
    q = g.node("Mul", [parts["query"], scale], "scaled")
    row = g.node("Softmax", [g.node("MatMul", [q, parts["key"]], "scores")], "row", axis=-1)
    y = g.node("MatMul", [row, parts["value"]], "seen")
    y = g.reshape(g.node("Transpose", [y], "seen.rows", perm=[1, 0, 2]), "joined", -1, dim)
    y = g.node("Add", [g.linear(y, "attended", attention.output.dense), x], "attended.sum")
    x = g.layer_norm(y, "attention", attention.output.LayerNorm)
    y = g.gelu(g.linear(x, "wide", layer.intermediate.dense), "gelu")
    y = g.node("Add", [g.linear(y, "narrow", layer.output.dense), x], "narrow.sum")
    g.reshape(g.layer_norm(y, "normed", layer.output.LayerNorm), OUT, 1, -1, dim)
    g.save(path, "layer", floats(TOKENS, 1, "n", dim), floats(OUT, 1, "n", dim))


def _half(values: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return values.detach().half().numpy()
