"""A profile made ready to serve: its models on a torch device, and what strategies share.

A strategy's module exposes `create(serving) -> Strategy`. Decoding and checking what a device
sent, recovery and classification live here, so that every strategy does them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from common import codec, registry
from common.errors import ConfigError, Refused
from common.messages import Query, Tensor
from common.patches import Indices, mosaic_grid, patchify, unmosaic
from common.profile import Input, Profile
from server.budget import Bucket
from server.models.checkpoint import load_model
from server.models.mae import MaskedAutoencoder
from server.models.vit import VisionTransformer, ViTOutput
from server.strategy import Strategy

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
M = TypeVar("M", bound=torch.nn.Module)
STRATEGIES = "server.strategies"


class Serving:
    """See the module's text. `device`: "cpu", "cuda" or "cuda:N". `max_batch`: to warm for.

    `edge`: whether a cloud peer stands behind this server, so that a strategy with exits may hold
    only the layers that its profile gives an edge. Raises ConfigError: no such device, weights
    that do not fit.
    """

    def __init__(
        self, profile: Profile, device: str = "cpu", max_batch: int = 1, *, edge: bool = False
    ) -> None:
        self.profile = profile
        self.edge = edge
        self.device = _device(device)
        self.warm_sizes = (1,) if self.device.type == "cpu" else (1, max_batch)
        """Batch sizes worth warming: a GPU takes its memory and picks its kernels by size."""
        self.bucket: Bucket | None = None
        """Bytes per second that all devices share, if the server has such a limit."""
        self._models: dict[str, torch.nn.Module] = {}

    @property
    def input(self) -> Input:
        """What the models look at."""
        return self.profile.manifest.input

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.profile.manifest.classes)

    def params(self, strategy: str) -> Mapping[str, Any]:
        """The profile's parameters of `strategy`."""
        return self.profile.manifest.params(strategy)

    def model(self, kind: str, type: type[M]) -> M:
        """The profile's model of `kind`, loaded once. Raises ConfigError if there is not one."""
        found = [(name, m) for name, m in self.profile.models.items() if m.kind == kind]
        if len(found) != 1:
            names = ", ".join(name for name, _ in found) or "none"
            raise ConfigError(
                f"profile {self.profile.name!r} must have one model of kind {kind!r}, has: {names}"
            )
        name, entry = found[0]
        if name not in self._models:
            loaded = load_model(entry.file, entry.kind, entry.config)
            self._models[name] = loaded.to(self.device).requires_grad_(False)
        model = self._models[name]
        assert isinstance(model, type)
        return model

    @property
    def classifier(self) -> VisionTransformer:
        """The model of kind "vit"."""
        return self.model("vit", VisionTransformer)

    @property
    def recovery(self) -> MaskedAutoencoder:
        """The model of kind "mae"."""
        return self.model("mae", MaskedAutoencoder)

    # Decoding, on the CPU.

    def array(self, query: Query, name: str, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        """Tensor `name` of `query`, decoded. Raises Refused("bad") unless it is `dtype` `shape`."""
        tensor = self.tensor(query, name)
        if tensor.dtype != dtype or tensor.shape != tuple(shape):
            raise Refused(
                "bad", f"{name} is {tensor.dtype} {tensor.shape}, not {dtype} {tuple(shape)}"
            )
        try:
            return codec.decode(tensor)
        except ValueError as error:
            raise Refused("bad", f"{name}: {error}") from None

    def tensor(self, query: Query, name: str) -> Tensor:
        """Tensor `name` of `query`, not decoded. Raises Refused("bad") if it is not there."""
        if name not in query.tensors:
            raise Refused("bad", f"{query.strategy} {query.step} needs a tensor {name!r}")
        return query.tensors[name]

    def frame(self, query: Query) -> U8:
        """The patches uint8 [N, p*p*3] of tensor "frame" at the input's size exactly."""
        shape = self.input
        full = (shape.height, shape.width, shape.channels)
        return patchify(self.array(query, "frame", "uint8", full), shape.patch)

    def scaled_frame(self, query: Query) -> U8:
        """As `frame`, of a picture of any size up to twice the input's, resampled (bicubic)."""
        shape = self.input
        picture = self.picture(query, "frame", 2)
        if picture.shape[:2] != (shape.height, shape.width):
            picture = _resample(picture, shape.height, shape.width)
        return patchify(picture, shape.patch)

    def picture(self, query: Query, name: str, most: int) -> U8:
        """Tensor `name` uint8 [h, w, 3] of any size up to `most` times the input's sides."""
        shape, tensor = self.input, self.tensor(query, name)
        height, width = most * shape.height, most * shape.width
        if len(tensor.shape) != 3 or not (
            0 < tensor.shape[0] <= height and 0 < tensor.shape[1] <= width
        ):
            raise Refused(
                "bad",
                f"{name} is {tensor.shape}: give [h, w, {shape.channels}], "
                f"at most {width}x{height}",
            )
        return self.array(query, name, "uint8", (*tensor.shape[:2], shape.channels))

    def supplied(self, query: Query, count: int) -> U8:
        """The `count` patches uint8 [count, p*p*3] in tensor "patches", or in a JPEG mosaic."""
        shape, side = self.input, self.input.patch
        if self.tensor(query, "patches").codec != "jpeg":
            return self.array(query, "patches", "uint8", (count, side * side * shape.channels))
        rows, columns = mosaic_grid(count)
        picture = self.array(query, "patches", "uint8", (rows * side, columns * side, 3))
        return unmosaic(picture, count, side)

    # Computing, on the accelerator.

    def pixels(self, patches: Sequence[U8]) -> torch.Tensor:
        """Patches uint8 [K, p*p*3] of B works as float32 [B, K, p*p*3] in [0, 1] on the device."""
        stacked = np.stack(patches) if len(patches) > 1 else patches[0][None]
        if not stacked.flags.writeable:  # torch warns of arrays that are views of a packet
            stacked = stacked.copy()
        return torch.from_numpy(stacked).to(self.device, torch.float32).div_(255)

    def recover(self, patches: Sequence[U8], indices: Sequence[Indices]) -> torch.Tensor:
        """All patches float32 [B, N, p*p*3] from those at `indices` [K] of each of B works.

        What was received stays as it was (A-MOT, section 4.1).
        """
        visible = self.pixels(patches)
        places = torch.from_numpy(np.stack(indices).astype(np.int64, copy=False))
        return self.recovery.recover(visible, places.to(self.device))

    def classify(self, pixels: torch.Tensor) -> tuple[F32, F32]:
        """Probabilities [B, classes] and class attention [B, N] of whole frames [B, N, p*p*3]."""
        output: ViTOutput = self.classifier(pixels)
        return to_numpy(F.softmax(output.logits.float(), dim=-1)), to_numpy(output.attention)


def to_numpy(values: torch.Tensor) -> F32:
    """`values` as float32 on the CPU."""
    return np.asarray(values.float().cpu().numpy())


def number(query: Query, name: str, default: Any, low: float, high: float) -> float:
    """Parameter `name` of `query`, or `default`. Raises Refused("bad") out of [low, high]."""
    value = query.params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused("bad", f"{name} is {value!r}, not a number from {low:g} to {high:g}")
    return float(value)


def no_step(query: Query, *steps: str) -> Refused:
    """The refusal of a step that the strategy does not have."""
    return Refused("unknown", f"{query.strategy} has {', '.join(steps)}, no {query.step[:40]!r}")


def strategies(serving: Serving, names: Iterable[str] | None = None) -> dict[str, Strategy]:
    """The strategies that the profile offers and this server has, made ready.

    `names`: only these. Raises ConfigError if one of them is not offered.
    """
    known = set(registry.names(STRATEGIES))
    wanted = set(serving.profile.manifest.strategies) & known if names is None else set(names)
    made: dict[str, Strategy] = {}
    for name in sorted(wanted):
        serving.params(name)
        made[name] = registry.load(STRATEGIES, name).create(serving)
    if not made:
        raise ConfigError(f"profile {serving.profile.name!r} offers nothing this server has")
    return made


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ConfigError(f"--device {text!r}: give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {text!r}: give cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {text}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _resample(picture: U8, height: int, width: int) -> U8:
    """uint8 [h, w, 3] to [height, width, 3], bicubic with antialiasing."""
    source = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    resized = F.interpolate(source, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
