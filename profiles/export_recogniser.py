"""Writes a recogniser of sounds for the device: the whole of it, or its stages up to a cut.

The whole is an ONNX graph from features to probabilities. A stage is an ONNX and a TFLite graph, of
which a device runs as many as the cut needs, one after the other. Sequences between them are
float32 [1, t, features] in both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import nn

from profiles import tflite
from profiles.graph import F32, Graph, floats, folded, pictures
from server.models.recogniser import MEAN, STD, Block, Recogniser

INPUT, OUTPUT, VALUES, MAP = "frame", "probabilities", "values", "map"


def recogniser_onnx(model: Recogniser, frames: int, path: Path) -> int:
    """Write ``model`` to ``path``; returns its multiply-adds.

    The graph maps ``frame`` uint8 [1, bands, frames, 1], features, to ``probabilities`` float32
    [1, classes].
    """
    g, config = Graph(), model.eval().config
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = _stem(g, g.node("Squeeze", [x, g.constant("last", np.array([3]))], "features"), model)
    for place, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        x = _block(g, x, f"block{place}", block)
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pooled")], "vector")
    g.node("Softmax", [g.linear(x, "logits", model.head)], OUTPUT, axis=1)
    source = pictures(INPUT, 1, config.bands, frames, 1)
    return g.save(path, "recogniser", source, floats(OUTPUT, 1, config.classes))


def stages(model: Recogniser, frames: int, stem: Path, count: int) -> list[dict[str, Path]]:
    """Write the first ``count`` stages for sounds of ``frames``: the files of each by runtime.

    The first takes ``values`` uint8 [1, frames, bands], each other the ``map`` of the one before.
    """
    made = []
    taken = (1, frames, model.eval().config.bands)
    for number, width in enumerate(model.config.widths[:count]):
        given = (1, taken[1] // (2 if number else 1), width)
        paths = {kind: Path(f"{stem}-{number + 1}.{kind}") for kind in ("onnx", "tflite")}
        _stage_onnx(model, number, paths["onnx"], taken, given)
        _stage_tflite(model, number, paths["tflite"], taken, given)
        made.append(paths)
        taken = given
    return made


def _stage_onnx(
    model: Recogniser, number: int, path: Path, taken: tuple[int, ...], given: tuple[int, ...]
) -> None:
    g = Graph()
    source = floats(VALUES, *taken) if number else pictures(VALUES, *taken)
    x = VALUES if number else g.node("Cast", [VALUES], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "channels", perm=[0, 2, 1])
    x = _block(g, x, "block", _numbered(model, number)) if number else _stem(g, x, model)
    g.node("Transpose", [x], MAP, perm=[0, 2, 1])
    g.save(path, "stage", source, floats(MAP, *given))


def _stem(g: Graph, x: str, model: Recogniser) -> str:
    scale = g.constant("scale", np.array(1 / 255 / STD, np.float32))
    shift = g.constant("shift", np.array(MEAN / STD, np.float32))
    x = g.node("Sub", [g.node("Mul", [x, scale], "scaled"), shift], "normalised")
    return g.node("Relu", [_conv(g, x, "stem", model.conv, model.norm)], "stem.on")


def _block(g: Graph, x: str, name: str, block: Block) -> str:
    y = g.node("Relu", [_conv(g, x, f"{name}.1", block.conv1, block.norm1)], f"{name}.on")
    y = _conv(g, y, f"{name}.2", block.conv2, block.norm2)
    around = _conv(g, x, f"{name}.around", block.shortcut, block.norm)
    return g.node("Relu", [g.node("Add", [y, around], f"{name}.sum")], name)


def _conv(g: Graph, x: str, name: str, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> str:
    weight, bias = _plain(conv, norm)
    names = [g.constant(f"{name}.w", weight), g.constant(f"{name}.b", bias)]
    (stride,), pads = conv.stride, [weight.shape[2] // 2] * 2
    return g.node("Conv", [x, *names], name, strides=[stride], pads=pads)


def _stage_tflite(
    model: Recogniser, number: int, path: Path, taken: tuple[int, ...], given: tuple[int, ...]
) -> None:
    g = tflite.Graph()
    source = x = g.source(VALUES, taken, np.float32 if number else np.uint8)
    if number == 0:
        x = g.cast(x, "float")
    x = g.reshape(x, "sequence", (1, taken[1], 1, taken[2]))
    if number:
        x = _block_tflite(g, x, _numbered(model, number))
    else:
        # Diagonal, so that only operators are needed that every convolution needs.
        scale = np.eye(taken[2], dtype=np.float32)[:, :, None, None] / np.float32(255 * STD)
        shift = np.full(taken[2], -MEAN / STD, np.float32)
        x = g.conv(x, "normalised", scale, shift, (1, 1))
        x = g.relu(_conv_tflite(g, x, "stem", model.conv, model.norm), "stem.on")
    g.save(path, source, g.reshape(x, MAP, given))


def _block_tflite(g: tflite.Graph, x: int, block: Block) -> int:
    y = g.relu(_conv_tflite(g, x, "1", block.conv1, block.norm1), "1.on")
    y = _conv_tflite(g, y, "2", block.conv2, block.norm2)
    around = _conv_tflite(g, x, "around", block.shortcut, block.norm)
    return g.relu(g.add(y, around, "sum"), "block")


def _conv_tflite(g: tflite.Graph, x: int, name: str, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> int:
    weight, bias = _plain(conv, norm)
    (stride,), padding = conv.stride, weight.shape[2] // 2
    return g.conv(x, name, weight[..., None], bias, (stride, 1), padding)


def _numbered(model: Recogniser, number: int) -> Block:
    block = model.blocks[number - 1]
    assert isinstance(block, Block)
    return block


def _plain(conv: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[F32, F32]:
    """Weight [o, i, k], as float16 has it and so takes half of the bytes, and bias [o]."""
    weight, bias = folded(conv, norm)
    return weight.astype(np.float16).astype(np.float32), bias
