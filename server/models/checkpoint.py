"""Loads a model from a local file: our own weights, or public checkpoints as they are published.

Read are safetensors and PyTorch .pth files (never unpickled freely) with the parameter names of
this project, of MAE's official code, of timm, or of transformers' files: ViT, ViTMAE, BERT. Nothing
is fetched. What a checkpoint cannot say (LayerNorm's epsilon, mean and std) is in the config:
MAE and timm use 1e-6, transformers' ViTMAE 1e-12; most timm models of the "augreg" family use mean
and std 0.5, the others ImageNet's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import ConfigError
from server.models.autoencoder import AutoEncoder, AutoEncoderConfig
from server.models.bert import Bert, BertConfig, from_transformers
from server.models.bottleneck import Bottleneck, BottleneckConfig
from server.models.cnn import Cnn, CnnConfig
from server.models.deepcod import Rates, RatesConfig
from server.models.exits import Exits, ExitsConfig
from server.models.light import LightConfig, LightInference
from server.models.mae import MAEConfig, MaskedAutoencoder
from server.models.recogniser import Recogniser, RecogniserConfig
from server.models.superres import SuperResConfig, SuperResolution
from server.models.vit import VisionTransformer, ViTConfig, from_mapping

Config = ViTConfig | MAEConfig | Mapping[str, Any]

KINDS: Mapping[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "vit": (ViTConfig, VisionTransformer),
    "mae": (MAEConfig, MaskedAutoencoder),
    "superres": (SuperResConfig, SuperResolution),
    "light": (LightConfig, LightInference),
    "cnn": (CnnConfig, Cnn),
    "deepcod": (RatesConfig, Rates),
    "bottleneck": (BottleneckConfig, Bottleneck),
    "bert": (BertConfig, Bert),
    "exits": (ExitsConfig, Exits),
    "recogniser": (RecogniserConfig, Recogniser),
    "autoencoder": (AutoEncoderConfig, AutoEncoder),
}
"""Every kind of model a profile may hold: the dataclass of its shape, and what builds it."""

_TRANSFORMERS = (
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(vit\.)?encoder\.layer\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.(mask_token|decoder_pos_embed|decoder_embed|decoder_norm|decoder_pred)",
     r"\1"),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^(vit\.)?layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^decoder\.mask_token$", "mask_token"),
)  # fmt: skip
_UNUSED = {
    "vit": r"^(vit\.)?pooler\.|^(decoder_|decoder\.|mask_token)",
    "mae": r"^(head\.|fc_norm)",
}
"""Keys that a checkpoint may hold beyond the model asked for (a MAE's decoder, a pooler)."""


def load_model(path: Path, kind: str, config: Config) -> nn.Module:
    """A model in evaluation mode, in float32 on the CPU, with the weights in ``path``.

    ``kind`` is one of KINDS; ``config`` is its config, or the fields of one. Positions are
    resampled where the file's grid is another. Raises ConfigError, naming file and keys, if the
    file cannot be read or does not fit the config.
    """
    if kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ConfigError(f"{path}: unknown kind of model {kind!r}; known: {known}")
    shape, architecture = KINDS[kind]
    try:
        parsed = _parsed(shape, config)
        model = architecture(parsed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: config: {error}") from error
    if isinstance(model, Bert):
        given = from_transformers(read(path), model.state_dict())
    else:
        given = convert(read(path), kind)
    _fit(path, model, given)
    model.load_state_dict(given)
    return model.eval()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of ``model`` to ``path`` as float16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, path)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, as published; ConfigError if unreadable."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # the unpickler's own error is a plain Exception's subclass
        raise ConfigError(f"{path}: holds more than weights: {error}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds no table of weights")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def convert(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """``tensors`` in float32 under this project's names, patch embedding as a matrix."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if kind in _UNUSED and re.search(_UNUSED[kind], name):
            continue
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        out[name] = value.float() if value.is_floating_point() else value
    _join_qkv(out)
    _join_positions(out)
    weight = out.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 4:
        # A convolution's kernel is [dim, channel, row, column]; a patch is (row, column, channel).
        out["patch_embed.proj.weight"] = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
    elif weight is not None and weight.ndim == 5:
        # Over clips it is [dim, channel, frame, row, column]; a tubelet ends in (frame, channel).
        out["patch_embed.proj.weight"] = weight.permute(0, 3, 4, 2, 1).flatten(1).contiguous()
    return out


def resample_positions(table: Tensor, grid: int) -> Tensor:
    """Positions [1, 1+g*g, dim] for another grid, [1, 1+grid*grid, dim], by bicubic resampling."""
    side = round((table.shape[1] - 1) ** 0.5)
    if side == grid:
        return table
    image = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat((table[:, :1], image.flatten(2).transpose(1, 2)), dim=1)


def _parsed(kind: type[Any], config: Config) -> Any:
    if isinstance(config, kind):
        return config
    if not isinstance(config, Mapping):
        raise TypeError(f"{type(config).__name__} where {kind.__name__} is needed")
    return from_mapping(kind, config)


def _join_qkv(tensors: dict[str, Tensor]) -> None:
    """Separate query, key and value projections become the joint one, in place."""
    for words in (("query", "key", "value"), ("q", "k", "v")):
        first = f".attn.{words[0]}."
        for name in [key for key in tensors if first in key]:
            parts = [name.replace(first, f".attn.{word}.") for word in words]
            if all(part in tensors for part in parts):
                joint = torch.cat([tensors.pop(part) for part in parts])
                tensors[name.replace(first, ".attn.qkv.")] = joint


def _join_positions(tensors: dict[str, Tensor]) -> None:
    """Separate positions in space and in time (MAE over clips) become one table, in place."""
    names = ("pos_embed_class", "pos_embed_spatial", "pos_embed_temporal")
    if all(name in tensors for name in names):
        first, space, time = (tensors.pop(name) for name in names)
        both = (time[:, :, None] + space[:, None]).flatten(1, 2)
        tensors["pos_embed"] = torch.cat((first, both), dim=1)


def _fit(path: Path, model: nn.Module, given: dict[str, Tensor]) -> None:
    """Complete ``given`` for ``model`` in place, or raise ConfigError naming what does not fit."""
    wanted = model.state_dict()
    for name in [key for key in wanted if key.startswith("fc_norm.")]:
        # MAE over clips calls it norm, and applies it to the mean all the same.
        if name not in given and name.removeprefix("fc_") in given:
            given[name] = given.pop(name.removeprefix("fc_"))
    for name in ("pos_embed", "decoder_pos_embed"):
        same = name in given and given[name].shape == getattr(wanted.get(name), "shape", None)
        if name in given and name in wanted and given[name].ndim == 3 and not same:
            grid = int(model.config.grid)  # type: ignore[union-attr, arg-type]
            given[name] = resample_positions(given[name], grid)
    for name, value in wanted.items():
        # Not kept in our files; only training needs them.
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, value)
    missing, unexpected = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    shapes = [
        f"{name} {tuple(given[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    faults = [
        f"{what}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if faults:
        raise ConfigError(f"{path}: does not fit the config; {'; '.join(faults)}")
