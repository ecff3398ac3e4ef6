"""What DeepCOD is compared with, on the device: the same split, other ways to send what lies there.

Yao et al., "Deep Compressive Offloading", SenSys 2020, section 6.2:

    lossless  as it is, without loss (Offload)
    intp      at a lower resolution, interpolated by the server (Offload-Intp)
    cs        random projections of its blocks, recovered by ISTA (Offload-CS)
    lossy     quantised evenly, jpeg, webp: whichever is better (Offload-Lossy)
    ae        the code of a heavier auto-encoder (Offload-AE+), of the input alone
    device    nothing: the whole model runs here (On-Device)

Everything that is quantised is coded by books of the same kind as DeepCOD's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.book import Book
from common.codec import encode
from common.errors import ConfigError
from common.messages import Query, Tensor
from common.offloading import F32, Part, Setting, Shape, cut, pack, projection, sensed
from device import inference
from device.bundle import Bundle
from device.content import View, view
from device.encoder import Quantizer
from device.inference import Model
from device.params import Param, from_profile
from device.picture import fit
from device.planes import planes, resampled
from device.strategy import Answer, Conversation, Frame, Pixels, Plan

NAME = "offload"
INPUT = "input"
POINTS = (INPUT, "block-1", "block-2", "block-3", "block-4")
"""In the model's order."""
SYMBOLS = ("intp", "lossy", "cs")
PICTURES = ("jpeg", "webp")
PARAMS = {
    "method": Param("lossy", choices=("lossless", *SYMBOLS, *PICTURES, "ae", "device")),
    "point": Param(INPUT, choices=POINTS),
    "rate": Param(1, 1, 16),
    "codec": Param("zstd", choices=("lz4", "zstd")),
}


@dataclass(slots=True)
class Offload:
    """Sends what lies at `point`, by `method`, at the profile's setting number `rate` of it.

    "map": as it is, in `codec`. "code" uint8 [n]: parts of symbols (`common.offloading`), or the
    auto-encoder's. "frame": a picture; of features uint8 [rows, columns], maps side by side.
    """

    bundle: Bundle
    params: Mapping[str, Any]
    view: View
    models: dict[str, Model] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    quantizer: Quantizer | None = None
    heavy: bool = True

    def infer(self, frame: Frame, plan: Plan) -> Conversation:
        """One round, none for "device"; Refused and Unavailable pass through.

        Raises ConfigError: a point, method or rate that the profile has not.
        """
        params = {**self.params, **plan.params}
        method, point, rate = params["method"], params["point"], params["rate"]
        pixels, classes = self.view(frame), self.bundle.manifest.classes
        if method == "device":
            whole = self.model(self.file("tail"), "probabilities")
            probabilities = whole(self.at(len(self.own["stages"]), pixels))
            return Answer.of(probabilities, classes, strategy=NAME, source="device", rounds=0)
        asked = {"method": method, "point": point, "rate": rate}
        tensors = self.tensors(pixels, method, point, rate, params["codec"])
        result = yield Query(NAME, "offloaded", params=asked, tensors=tensors)
        return Answer.of_result(result, classes, strategy=NAME, rounds=1)

    def tensors(
        self, pixels: Pixels, method: str, point: str, rate: int, codec: str
    ) -> dict[str, Tensor]:
        """What is sent of a frame."""
        if method == "ae":
            if point != INPUT:
                raise ConfigError("the auto-encoder is for the point input")
            return {"code": encode(np.frombuffer(self.coded(pixels), np.uint8))}
        if method == "lossless":
            return {
                "map": encode(pixels if point == INPUT else self.features(point, pixels), codec)
            }
        row = self.setting(point, method, rate)
        if method in PICTURES:
            return {"frame": self.picture(pixels, method, point, row)}
        setting = Setting.of(row)
        signal = self.signal(point, pixels)
        found = zip(values(signal, setting), setting.parts, strict=True)
        symbols = [part.quantise(each) for each, part in found]
        books = [self.book(f"{point}/{method}/{rate}/{place}") for place in range(len(symbols))]
        return {"code": encode(np.frombuffer(pack(symbols, books), np.uint8))}

    def picture(self, pixels: Pixels, method: str, point: str, row: Mapping[str, Any]) -> Tensor:
        """The frame at the setting's scale, or the features as one grey picture."""
        if point != INPUT:
            (low, high, _), *_ = row["parts"]
            grey = Part(low, high, 256).quantise(self.features(point, pixels))
            return encode(mosaic(grey), method, quality=row["quality"])
        height, width, channels = pixels.shape
        if channels == 1:
            return encode(pixels[:, :, 0], method, quality=row["quality"])
        size = (max(1, round(side * row["scale"])) for side in (height, width))
        return encode(fit(pixels, *size), method, quality=row["quality"])

    def signal(self, point: str, pixels: Pixels) -> list[F32]:
        """The planes at `point`."""
        if point != INPUT:
            return [self.features(point, pixels)]
        shapes: list[Shape] = [tuple(s) for s in self.own["signals"][INPUT]]
        return planes(pixels, shapes)

    def features(self, point: str, pixels: Pixels) -> F32:
        """What lies at `point`, float32 [c, *grid]."""
        known = self.own["signals"]
        if point not in known:
            raise ConfigError(f"{NAME}: no point {point!r}: choose one of {', '.join(known)}")
        return np.ascontiguousarray(np.moveaxis(self.at(POINTS.index(point), pixels), -1, 0))

    def at(self, count: int, pixels: Pixels) -> F32:
        """What the first `count` stages of the model make of a frame: [*grid, c]."""
        values: Any = pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, 0].T)
        for path in self.own["stages"][:count]:
            values = self.model(path, "map")(values)
        return np.asarray(values)

    def coded(self, pixels: Pixels) -> bytes:
        """The auto-encoder's code."""
        if self.quantizer is None:
            self.bundle.path(self.file("autoencoder_weights"))  # the graph points into it
            with np.load(self.bundle.path(self.own["books"])) as file:
                self.quantizer = Quantizer(file["ae/centres"])
        signal = self.model(self.file("autoencoder"), "signal", "frame")(pixels)
        return self.book("ae").encode(self.quantizer(signal))

    @property
    def own(self) -> Mapping[str, Any]:
        """The profile's parameters, those that are no Param too."""
        return self.bundle.manifest.params(NAME)

    def setting(self, point: str, method: str, rate: int) -> Mapping[str, Any]:
        """The profile's setting. Raises ConfigError if it has none."""
        rows = self.own.get("settings", {}).get(point, {}).get(method, ())
        if not 1 <= rate <= len(rows):
            raise ConfigError(f"{NAME}: {method} at {point} has {len(rows)} rates, not {rate}")
        found: Mapping[str, Any] = rows[rate - 1]
        return found

    def file(self, name: str) -> str:
        """A file that the profile's parameters name. Raises ConfigError if they do not."""
        if name not in self.own:
            raise ConfigError(f"profile {self.bundle.manifest.name!r} has no {name} of {NAME!r}")
        return str(self.own[name])

    def model(self, path: str, target: str, source: str = "values") -> Model:
        """A model of the bundle, loaded once."""
        if path not in self.models:
            self.models[path] = inference.load(self.bundle.path(path), source, target)
        return self.models[path]

    def book(self, name: str) -> Book:
        """A book of the bundle, read once."""
        if name not in self.books:
            with np.load(self.bundle.path(self.own["books"])) as file:
                self.books[name] = Book.read(
                    {key: file[f"{name}/{key}"] for key in ("lengths", "zeros", "predicted")}
                )
        return self.books[name]


def values(signal: list[F32], setting: Setting) -> list[F32]:
    """The parts of a signal before they are quantised: its planes at `setting`'s scale, ratio."""
    made: list[F32] = []
    for plane in signal:
        small = resampled(plane, setting.resampled(plane.shape))
        if setting.ratio is None:
            made.append(small)
            continue
        pieces = cut(small)
        kept = sensed(pieces.shape[1], setting.ratio)
        measured = pieces @ projection(pieces.shape[1])[:kept].T
        made += [measured[None, :, 0], measured[:, 1:].reshape(1, -1)]
    return made


def mosaic(maps: Any) -> Any:
    """Maps uint8 [c, h, w] side by side in one picture, as square as their number allows.

    Sequences [c, t] are one already.
    """
    if maps.ndim == 2:
        return maps
    c, h, w = maps.shape
    rows = next(r for r in range(int(c**0.5), 0, -1) if c % r == 0)
    tiles = maps.reshape(rows, c // rows, h, w).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(tiles).reshape(rows * h, c // rows * w)


def create(bundle: Bundle) -> Offload:
    """The strategy; models and books are loaded when they are needed.

    Raises ConfigError: a profile without settings of it.
    """
    params = from_profile(PARAMS, bundle.manifest.params(NAME))
    return Offload(bundle, params, view(bundle.manifest))
