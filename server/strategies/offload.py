"""What DeepCOD is compared with, on the server: undo what the device did, run the model's rest.

Yao et al., "Deep Compressive Offloading", SenSys 2020, section 6.2; `device.strategies.offload`
says what the methods are. Settings and books are those of the profile, as on the device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.book import Book
from common.errors import ConfigError, Refused
from common.messages import Query
from common.offloading import Part, Setting, Shape, blocks, longest, sensed, unpack
from server.models.autoencoder import AutoEncoder
from server.models.backbone import KINDS, backbone
from server.sensing import recover
from server.serving import F32, U8, Serving, no_step, number, to_numpy
from server.strategy import Memory, Outcome, Work

NAME = "offload"
STEP = "offloaded"
INPUT = "input"
SYMBOLS = ("intp", "lossy", "cs")
PICTURES = ("jpeg", "webp")
RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""From brightness and two colours (ITU-T T.871)."""


class Offload:
    """Step "offloaded": what the query's "method" sends at its "point", by setting "rate"."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._params = serving.params(NAME)
        kind = self._params.get("backbone", "cnn")
        if kind not in KINDS:
            raise ConfigError(f"{NAME}: backbone {kind!r} is none of {', '.join(KINDS)}")
        self._backbone = backbone(serving.model(kind, KINDS[kind]))
        self._signals = _signals(self._params)
        self._settings = dict(_settings(self._params))
        books = _books(serving, self._params.get("books"))
        self._books = {
            key: [books[f"{'/'.join(map(str, key))}/{place}"] for place in range(len(shapes))]
            for key, setting in self._settings.items()
            if isinstance(setting, Setting)
            for shapes in [setting.shapes(self._signals[key[0]])]
        }
        self._coder: tuple[AutoEncoder, Book] | None = None
        if "autoencoder" in self._params:
            self._coder = (serving.model("autoencoder", AutoEncoder), books["ae"])
            centres = torch.from_numpy(_arrays(serving, self._params["books"])["ae/centres"])
            self._coder[0].quantizer.centres.data.copy_(centres)

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode what came. Raises Refused("bad" | "unknown")."""
        if query.step != STEP:
            raise no_step(query, STEP)
        method, point = query.params.get("method"), query.params.get("point", INPUT)
        if not isinstance(point, str) or point not in self._signals:
            raise Refused("bad", f"point is none of {', '.join(self._signals)}")
        if method == "lossless":
            return Work((NAME, method, point, 0), {"map": self._map(query, point)})
        if method == "ae" and point == INPUT and self._coder is not None:
            coder, book = self._coder
            shape = (coder.config.channels, *coder.config.grid)
            (found,) = self._symbols(query, [shape], [book])
            return Work((NAME, method, point, 0), {"0": found})
        rate = number(query, "rate", 1, 1, 1 << 16)
        key = (point, method, int(rate))
        if not isinstance(method, str) or rate != int(rate) or key not in self._settings:
            raise Refused("bad", f"the profile has no such method and rate at {point}")
        setting = self._settings[key]
        if not isinstance(setting, Setting):
            return Work((NAME, method, *key[::2]), {"map": self._picture(query, point, setting)})
        shapes = setting.shapes(self._signals[point])
        parts = self._symbols(query, shapes, self._books[key])
        return Work((NAME, method, *key[::2]), {str(i): part for i, part in enumerate(parts)})

    def _symbols(self, query: Query, shapes: list[Shape], books: list[Book]) -> list[U8]:
        tensor = self._serving.tensor(query, "code")
        if (
            len(tensor.shape) != 1
            or tensor.shape[0] > longest(shapes, books)
            or tensor.codec != "raw"
        ):
            raise Refused("bad", f"code is {tensor.codec} {tensor.shape}, not raw [n] of a frame")
        code = self._serving.array(query, "code", "uint8", tensor.shape)
        try:
            return unpack(code.data, shapes, books)
        except ValueError as error:
            raise Refused("bad", f"code: {error}") from None

    def _map(self, query: Query, point: str) -> Any:
        """What was sent as it is: a frame uint8 [H, W, channels], or features float32."""
        if self._serving.tensor(query, "map").codec in PICTURES:
            raise Refused("bad", "a JPEG or WebP goes by the methods of that name")
        shape = self._serving.input
        if point == INPUT:
            full = (shape.height, shape.width, shape.channels)
            return self._serving.array(query, "map", "uint8", full)
        found = self._serving.array(query, "map", "float32", self._signals[point][0])
        if not np.isfinite(found).all():
            raise Refused("bad", "map holds what is no number")
        return found

    def _picture(self, query: Query, point: str, row: Mapping[str, Any]) -> Any:
        """A JPEG or WebP: of a picture float32 [c, h, w] 0 to 255, of features as they were."""
        tensor = self._serving.tensor(query, "frame")
        if tensor.codec not in PICTURES:
            raise Refused("bad", "frame must be a JPEG or WebP")
        if point == INPUT and self._serving.input.channels == 3:
            return self._serving.picture(query, "frame", 1)
        (shape,) = self._signals[point]
        side = _mosaic(shape)
        grey = self._serving.array(query, "frame", "uint8", side)
        if len(shape) == 3:
            tiles = grey.reshape(side[0] // shape[1], shape[1], -1, shape[2])
            grey = np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(shape)
        if point == INPUT:
            return grey.astype(np.float32)
        (low, high, _), *_ = row["parts"]
        return Part(low, high, 256).restore(grey)

    @torch.inference_mode()
    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        """Restore works of one setting and run the rest of the model on them."""
        _, method, point, rate = works[0].key
        assert isinstance(point, str)
        if method in ("lossless", *PICTURES):
            signal = self._maps(works, point)
        elif method == "ae":
            assert self._coder is not None
            symbols = self._stacked(works, "0").long()
            signal = (self._coder[0].decode(symbols) + 1) / 2
        else:
            setting = self._settings[point, str(method), int(str(rate))]
            assert isinstance(setting, Setting)
            signal = self._restored(works, setting, point)
        if point == INPUT and self._serving.input.channels == 1:
            signal = signal.squeeze(1)  # a sound's bands are its features
        logits = self._backbone.behind(signal, point)[-1]
        rows: F32 = to_numpy(F.softmax(logits.float(), dim=-1))
        return [Outcome(row) for row in rows]

    def _maps(self, works: Sequence[Work], point: str) -> Tensor:
        """What was sent as maps or pictures, as the backbone is given it."""
        if point != INPUT:
            return self._stacked(works, "map")
        maps = [torch.from_numpy(np.array(work.arrays["map"])) for work in works]
        if maps[0].dtype != torch.uint8:
            return torch.stack(maps).to(self._serving.device) / 255
        return torch.stack([self._seen(each) for each in maps]).to(self._serving.device)

    def _seen(self, picture: Tensor) -> Tensor:
        """A picture uint8 [h, w, c] of any size at that of the planes, in [0, 1]."""
        shape, size = self._signals[INPUT][0], self._serving.input
        planes = picture.permute(2, 0, 1)[None] / 255
        if size.channels == 3 and planes.shape[2:] == (size.height, size.width):
            return self._backbone.before(planes, INPUT)[0]
        return _resized(planes, shape[1:])[0].clamp(0, 1)

    def _restored(self, works: Sequence[Work], setting: Setting, point: str) -> Tensor:
        planes, place = [], 0
        for shape in self._signals[point]:
            small = setting.resampled(shape)
            values = [
                setting.parts[place + i].restore(
                    np.stack([w.arrays[str(place + i)] for w in works])
                )
                for i in range(1 if setting.ratio is None else 2)
            ]
            place += len(values)
            tensors = [torch.from_numpy(each).to(self._serving.device) for each in values]
            if setting.ratio is None:
                plane = tensors[0]
            else:
                count, size = blocks(small)
                rest = tensors[1].view(-1, count, sensed(size, setting.ratio) - 1)
                measured = torch.cat((tensors[0].view(-1, count, 1), rest), 2)
                plane = recover(measured, small, setting.penalty)
            planes.append(_resized(plane, shape[1:]) if small != shape else plane)
        if point != INPUT:
            return planes[0]
        if len(planes) == 1:
            return planes[0].clamp(0, 255) / 255
        brightness, colours = planes
        both = torch.cat((brightness, _resized(colours, brightness.shape[2:])), 1)
        picture = torch.einsum("rc,bchw->brhw", torch.tensor(RGB).to(both), both)
        return picture.clamp(0, 255) / 255

    def _stacked(self, works: Sequence[Work], name: str) -> Tensor:
        return torch.from_numpy(np.stack([w.arrays[name] for w in works])).to(self._serving.device)

    def warm(self) -> None:
        """What the profile's own method runs, per batch size worth it."""
        serving = self._serving
        shape = serving.input
        blank = np.zeros((shape.height, shape.width, shape.channels), np.uint8)
        for size in serving.warm_sizes:
            self.forward([Work((NAME, "lossless", INPUT, 0), {"map": blank})] * size)


def _resized(planes: Tensor, size: Sequence[int]) -> Tensor:
    """[b, c, *grid] at another size: cubic, with antialiasing where there are two sides."""
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    if len(size) == 1:
        wide = F.interpolate(planes.unsqueeze(2), (1, size[0]), mode="bicubic")
        return wide.squeeze(2)
    return F.interpolate(planes, tuple(size), mode="bicubic", antialias=True)


def _mosaic(shape: Shape) -> tuple[int, int]:
    """The sides of the picture of maps [c, *grid] (`device.strategies.offload.mosaic`)."""
    if len(shape) == 2:
        return shape[0], shape[1]
    maps, height, width = shape
    rows = next(r for r in range(int(math.sqrt(maps)), 0, -1) if maps % r == 0)
    return rows * height, maps // rows * width


def _signals(params: Mapping[str, Any]) -> dict[str, list[Shape]]:
    try:
        return {
            point: [tuple(int(side) for side in shape) for shape in shapes]
            for point, shapes in params["signals"].items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{NAME}: signals: {error!r}") from None


def _settings(params: Mapping[str, Any]) -> Any:
    for point, methods in params.get("settings", {}).items():
        for method, rows in methods.items():
            for place, row in enumerate(rows):
                made = row if method in PICTURES else Setting.of(row)
                yield (point, method, place + 1), made


def _arrays(serving: Serving, path: str) -> Mapping[str, Any]:
    try:
        with np.load(io.BytesIO(serving.profile.read(path))) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} holds no books: {error}") from None


def _books(serving: Serving, path: str | None) -> dict[str, Book]:
    """The books of the bundle's file, by name."""
    if path is None:
        return {}
    arrays = _arrays(serving, path)
    names = {name.rpartition("/")[0] for name in arrays if name.endswith("/lengths")}
    tables = ("lengths", "zeros", "predicted")
    return {n: Book.read({table: arrays[f"{n}/{table}"] for table in tables}) for n in names}


def create(serving: Serving) -> Offload:
    """The strategy for one profile."""
    return Offload(serving)
