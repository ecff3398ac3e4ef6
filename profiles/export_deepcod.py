"""Writes what the device computes of DeepCOD: its encoders, and a CNN's layers up to a cut.

An encoder becomes numpy arrays, an ONNX graph and a TFLite graph; scaling is folded into the
convolution, so each takes a frame as a camera gives it, or the map of a stage. A stage of the CNN
becomes an ONNX and a TFLite graph, of which a device runs as many as the cut needs, one after the
other; the ONNX ones hold no weights, but point into the CNN's own file. Maps between them are
float32 [1, height, width, features] in both.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from common.columns import ColumnBook
from profiles import tflite
from profiles.graph import Graph, floats, folded, pictures
from profiles.pointing import Pointing
from server.models.cnn import Block, Cnn
from server.models.deepcod import STEPS, DeepCOD

INPUT, OUTPUT, MAP = "values", "signal", "map"
F32 = npt.NDArray[np.float32]


@torch.no_grad()
def kernel_of(model: DeepCOD, frames: bool) -> tuple[F32, F32]:
    """Kernel [C, features, *k] and bias [C] for what lies at the point; `frames`: for 0-255.

    That of frames is made of whole numbers (see `server.models.deepcod.snap`).
    """
    kernel = model.plain()
    sides = (1,) * model.config.dims
    bias = -(kernel * model.mean.view(1, -1, *sides)).flatten(1).sum(1)
    if frames:
        numbers, factor = whole((kernel / 255).numpy())
        return factor * numbers, bias.numpy()
    return kernel.half().float().numpy(), bias.numpy()  # as ONNX and TFLite keep it


def whole(kernel: F32) -> tuple[npt.NDArray[np.int8], np.float32]:
    """A kernel as whole numbers and the factor that they have in common."""
    factor = np.abs(kernel).max() / np.float32(STEPS)
    return np.rint(kernel / factor).astype(np.int8), factor


def numpy_file(
    model: DeepCOD, book: ColumnBook, path: Path, frames: bool = True, shrink: int = 1
) -> None:
    """Write encoder, centres and code book to `path`, as `device.encoder` reads them.

    `frames`: whether it takes frames of 0-255, not maps. `shrink`: of how many pixels to a side
    it takes the mean first.
    """
    kernel, bias = kernel_of(model, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "kernel": np.moveaxis(kernel, (0, 1), (-1, -2)) / np.float32(shrink**2),
        "bias": bias,
        "centres": model.quantizer.centres.detach().numpy().astype(np.float32),
        "shrink": np.array(shrink),
        **book.tables,
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def onnx_file(model: DeepCOD, path: Path, frames: bool = True, shrink: int = 1) -> None:
    """Write the convolution: `values` [1, *size, features] to `signal` float32 [1, *grid, C].

    A frame's bytes are multiplied as they are, and where the mean of `shrink` x `shrink` pixels is
    what counts, by a kernel so much larger.
    """
    kernel, bias = kernel_of(model, frames)
    shape, g = model.config, Graph()
    size = (1, *(shrink * side for side in shape.size), shape.inputs)
    target = floats(OUTPUT, 1, *shape.grid, shape.channels)
    if not frames:
        x = g.node(
            "Transpose", [INPUT], "planes", perm=[0, 1 + shape.dims, *range(1, 1 + shape.dims)]
        )
        names = [g.constant("kernel", kernel), g.constant("bias", bias)]
        sides = [shape.kernel] * shape.dims
        x = g.node("Conv", [x, *names], "channels", kernel_shape=sides, strides=sides)
        g.node("Transpose", [x], OUTPUT, perm=[0, *range(2, 2 + shape.dims), 1])
        g.save(path, "encoder", floats(INPUT, *size), target)
        return
    numbers, factor = whole(kernel)
    taps = np.moveaxis(numbers, (0, 1), (-1, -2))
    for dim in range(shape.dims):
        taps = taps.repeat(shrink, dim)
    x, side = INPUT, shrink * shape.kernel
    if shape.dims == 2:
        rows, columns = shape.grid
        x = g.reshape(x, "lines", rows, side, columns, side * shape.inputs)
        x = g.node("Transpose", [x], "cells", perm=[0, 2, 1, 3])
    x = g.reshape(x, "places", math.prod(shape.grid), side**shape.dims * shape.inputs)
    g.constants.append(numpy_helper.from_array(taps.reshape(-1, shape.channels), "numbers"))
    x = g.node("MatMulInteger", [x, "numbers"], "sums")
    x = g.node("Cast", [x], "exact", to=TensorProto.FLOAT)
    each = np.array(factor / shrink**shape.dims, np.float32)
    x = g.node("Mul", [x, g.constant("factor", each)], "scaled")
    x = g.node("Add", [x, g.constant("bias", bias)], "shifted")
    g.reshape(x, OUTPUT, 1, *shape.grid, shape.channels)
    g.save(path, "encoder", pictures(INPUT, *size), target)


def tflite_file(model: DeepCOD, path: Path, frames: bool = True, shrink: int = 1) -> None:
    """Write the convolution: `values` [1, *size, features] to `signal` float32 [1, *grid, C].

    Raises ValueError where LiteRT is not installed.
    """
    kernel, bias = kernel_of(model, frames)
    shape, g = model.config, tflite.Graph()
    size = (1, *(shrink * side for side in shape.size), shape.inputs)
    source = x = g.source(INPUT, size, np.uint8 if frames else np.float32)
    if frames:
        x = g.cast(x, "float")
    if shape.dims == 1:
        x = g.reshape(x, "map", (1, shape.size[0], 1, shape.inputs))
        kernel = kernel[..., None]
    if shrink > 1:
        x = g.pool(x, shrink, "means")
    stride = (shape.kernel, shape.kernel if shape.dims == 2 else 1)
    target = g.conv(x, OUTPUT, kernel, bias, stride)
    if shape.dims == 1:
        target = g.reshape(target, f"{OUTPUT}.flat", (1, *shape.grid, shape.channels))
    g.save(path, source, target)


def stages_onnx(cnn: Cnn, weights: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Write the first `count` stages for frames of `size` beside `weights`, into which they point.

    The first takes `values` uint8 [1, *size, 3], each other the `map` of the one before.
    """
    shapes = shapes_of(cnn, size)
    made = []
    for number in range(count):
        g, x = Pointing(cnn, weights), INPUT
        if number == 0:
            x = _stem_onnx(g, cnn)
        else:
            x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
            for place, block in enumerate(getattr(cnn, f"stage{number}")):
                x = block_onnx(g, x, f"block{place}", block)
        g.node("Transpose", [x], MAP, perm=[0, 2, 3, 1])
        source = pictures(INPUT, 1, *size, 3) if number == 0 else floats(INPUT, *shapes[number])
        made.append(weights.with_name(f"{weights.stem}-stage{number + 1}.onnx"))
        g.write(made[-1], [source], [floats(MAP, *shapes[number + 1])])
    return made


def stages(
    cnn: Cnn, weights: Path, stem: Path, size: tuple[int, int], count: int
) -> list[dict[str, Path]]:
    """Both for the first `count` stages: the files of each by runtime."""
    kinds = stages_onnx(cnn, weights, size, count), stages_tflite(cnn, stem, size, count)
    return [{"onnx": onnx, "tflite": lite} for onnx, lite in zip(*kinds, strict=True)]


def stages_tflite(cnn: Cnn, stem: Path, size: tuple[int, int], count: int) -> list[Path]:
    """The same as TFLite, which holds its weights itself: STEM1.tflite, STEM2.tflite, ..."""
    shapes = shapes_of(cnn, size)
    made = []
    for number in range(count):
        made.append(Path(f"{stem}{number + 1}.tflite"))
        _stage_tflite(cnn, number, made[-1], size, shapes[number])
    return made


def shapes_of(cnn: Cnn, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Of what lies at each point, with a batch of one, features last."""
    height, width = (side // cnn.config.shrink for side in size)
    a, b, c, _ = cnn.config.widths
    found = [(1, height, width, 3)]
    for factor, features in ((4, a), (1, a), (2, b), (2, c)):
        height, width = -(-height // factor), -(-width // factor)
        found.append((1, height, width, features))
    return found


def _stem_onnx(g: Pointing, cnn: Cnn) -> str:
    x = g.node("Cast", [INPUT], "float", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    side = cnn.config.shrink
    if side > 1:
        x = g.node("AveragePool", [x], "means", kernel_shape=[side] * 2, strides=[side] * 2)
    mean, std = ((255 * each).numpy() for each in (cnn.mean, cnn.std))
    x = g.node("Sub", [x, g.constant("mean", mean)], "centred")
    x = g.node("Div", [x, g.constant("std", std)], "normalised")
    for place in (0, 3):
        y = _conv_onnx(g, x, f"stem{place}", cnn.stem[place], cnn.stem[place + 1])
        x = g.node("Relu", [y], f"stem{place}.on")
    return x


def block_onnx(g: Pointing, x: str, name: str, block: Block) -> str:
    """A residual block. Where a side is odd, its pool's last places are the mean of fewer."""
    y = g.node("Relu", [_conv_onnx(g, x, f"{name}.conv1", block.conv1, block.norm1)], f"{name}.on")
    y = _conv_onnx(g, y, f"{name}.conv2", block.conv2, block.norm2)
    if isinstance(block.shortcut, nn.Sequential):
        pool, conv, norm = block.shortcut
        if isinstance(pool, nn.AvgPool2d):
            side = [block.conv1.stride[0]] * 2
            x = g.node("AveragePool", [x], f"{name}.pool", kernel_shape=side, strides=side,
                       ceil_mode=1)  # fmt: skip
        x = _conv_onnx(g, x, f"{name}.shortcut", conv, norm)
    return g.node("Relu", [g.node("Add", [x, y], f"{name}.sum")], f"{name}.out")


def _conv_onnx(g: Pointing, x: str, name: str, conv: nn.Module, norm: nn.Module) -> str:
    """A convolution and its batch norm, which runtimes fold into it."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    weight = g.weight(f"{name}.weight", conv.weight)
    sides = {"strides": list(conv.stride), "pads": [int(conv.padding[0])] * 4}
    y = g.node("Conv", [x, weight], f"{name}.plain", **sides)
    held = {"scale": norm.weight, "shift": norm.bias, "mean": norm.running_mean,
            "var": norm.running_var}  # fmt: skip
    names = [g.weight(f"{name}.{part}", value) for part, value in held.items() if value is not None]
    return g.node("BatchNormalization", [y, *names], name, epsilon=norm.eps)


def _stage_tflite(
    cnn: Cnn, number: int, path: Path, size: tuple[int, int], taken: tuple[int, ...]
) -> None:
    g = tflite.Graph()
    if number == 0:
        source = g.source(INPUT, (1, *size, 3), np.uint8)
        x = g.cast(source, "float")
        if cnn.config.shrink > 1:
            x = g.pool(x, cnn.config.shrink, "means")
        mean, std = (each.flatten().numpy().astype(np.float32) for each in (cnn.mean, cnn.std))
        # Diagonal, so that only operators are needed that every convolution needs.
        scale = np.diag(1 / (255 * std)).astype(np.float32)[:, :, None, None]
        x = g.conv(x, "normalised", scale, -mean / std, (1, 1))
        for place in (0, 3):
            x = _conv_tflite(g, x, f"stem{place}", cnn.stem[place], cnn.stem[place + 1])
            x = g.relu(x, f"stem{place}.on")
    else:
        source = x = g.source(INPUT, taken, np.float32)
        for place, block in enumerate(getattr(cnn, f"stage{number}")):
            x = _block_tflite(g, x, f"block{place}", block)
    g.save(path, source, x)


def _block_tflite(g: tflite.Graph, x: int, name: str, block: Block) -> int:
    y = g.relu(_conv_tflite(g, x, f"{name}.conv1", block.conv1, block.norm1), f"{name}.on")
    y = _conv_tflite(g, y, f"{name}.conv2", block.conv2, block.norm2)
    if isinstance(block.shortcut, nn.Sequential):
        pool, conv, norm = block.shortcut
        if isinstance(pool, nn.AvgPool2d):
            x = g.pool(x, block.conv1.stride[0], f"{name}.pool")
        x = _conv_tflite(g, x, f"{name}.shortcut", conv, norm)
    return g.relu(g.add(x, y, f"{name}.sum"), f"{name}.out")


def _conv_tflite(g: tflite.Graph, x: int, name: str, conv: nn.Module, norm: nn.Module) -> int:
    weight, bias, stride, padding = _plain(conv, norm)
    return g.conv(x, name, weight, bias, (stride, stride), padding)


def _plain(conv: nn.Module, norm: nn.Module) -> tuple[F32, F32, int, int]:
    """Weight [o, i, h, w], bias [o], stride and padding of a convolution and its batch norm.

    Weights are rounded to float16, for half the bytes to fetch: symbols hardly notice.
    """
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    weight, bias = folded(conv, norm)
    half = weight.astype(np.float16).astype(np.float32)
    return half, bias, conv.stride[0], int(conv.padding[0])
