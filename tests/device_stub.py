"""A stand-in for the server, over real sockets and without torch: it answers by brightness.

Class i of four is a frame whose mean lies in the i-th quarter of 0-255, so a test knows the label
of every picture it makes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import patches
from common.channel import Channel, Listener, serve
from common.codec import decode, encode
from common.columns import trained
from common.messages import Bye, Chunk, Fetch, Hello, Message, Query, Refusal, Result, Welcome
from common.profile import File, Input, Manifest
from device.strategy import Pixels
from tests import tiers_stub

CLASSES = ("black", "dark", "light", "white")
SIDE, PATCH = 64, 16
Reaction = Callable[[Query], Result | Refusal | None]


def shade(label: int, seed: int = 0) -> Pixels:
    """A frame uint8 [64, 64, 3] of class `label`."""
    random = np.random.default_rng(seed)
    return (label * 64 + random.integers(20, 44, (SIDE, SIDE, 3))).astype(np.uint8)


def write(directory: Path, labels: list[int], suffix: str = ".png") -> list[Path]:
    """One picture per label, named so that they sort in order."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{index:04}{suffix}" for index in range(len(labels))]
    for path, label in zip(paths, labels, strict=True):
        Image.fromarray(shade(label)).save(path)
    return paths


def classify(pixels: Pixels) -> Any:
    """Probabilities float32 [4]: 0.7 for the class of the mean, the rest shared."""
    probabilities = np.full(4, 0.1, dtype=np.float32)
    probabilities[min(3, int(pixels.mean() // 64))] = 0.7
    return probabilities


def local_model() -> bytes:
    """The same by ONNX: "frame" uint8 [1, 64, 64, 3] -> "probabilities" float32 [1, 4]."""
    from onnx import TensorProto, helper, numpy_helper

    centres = np.array([32, 96, 160, 224], dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "centres"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Neg", ["distance"], ["nearness"]),
        helper.make_node("Softmax", ["nearness"], ["flat"], axis=-1),
        helper.make_node("Unsqueeze", ["flat", "first"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "local",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.array([0, 1, 2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(np.array([0], dtype=np.int64), "first"),
            numpy_helper.from_array(centres, "centres"),
        ],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


def computing_models() -> dict[str, bytes]:
    """Files of what computes on the device: patches for tokens, their means for the rest."""
    from onnx import helper

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    count, width = (SIDE // PATCH) ** 2, PATCH * PATCH * 3
    mean = node("ReduceMean", "embedding", "mean", axes=[2])
    turned = node("Transpose", "mean", "row", perm=[0, 2, 1])
    return {
        "device/embed.onnx": _graph(
            [node("Cast", "frame", "float", to=1), node("Reshape", "float shape", "embedding")],
            ("frame", 2, [1, SIDE, SIDE, 3]), ("embedding", 1, [1, count, width]),
            shape=np.array([1, count, width]),
        ),
        "device/po.onnx": _graph(
            [node("Slice", "embedding start end axis", "first"),
             node("Concat", "first embedding", "tokens", axis=1)],
            ("embedding", 1, [1, count, width]), ("tokens", 1, [1, 1 + count, width]),
            start=np.array([0]), end=np.array([1]), axis=np.array([1]),
        ),
        "weights/embed.onnx": _graph(
            [node("Cast", "frame", "float", to=1), node("Reshape", "float shape", "tokens")],
            ("frame", 2, [1, SIDE, SIDE, 3]), ("tokens", 1, [1, count, width]),
            shape=np.array([1, count, width]),
        ),
        "weights/block.onnx": _graph(
            [node("Identity", "tokens", "tokens.out"), node("Identity", "sizes", "sizes.out"),
             node("Identity", "merge", "unused")],
            [("tokens", 1, [count, width]), ("sizes", 1, [count]), ("merge", 7, [1])],
            [("tokens.out", 1, [count, width]), ("sizes.out", 1, [count])],
        ),
        "weights/last.onnx": local_model(),
        "weights/vit.safetensors": b"what the graphs of a real profile point into",
        "device/mbc.onnx": _graph(
            [mean, turned, node("Mul", "row scale", "latent")],
            ("embedding", 1, [1, count, width]), ("latent", 1, [1, 1, count]),
            scale=np.array(15 / 255, np.float32),
        ),
        "device/df.onnx": _graph(
            [node("Cast", "frame", "float", to=1), node("Reshape", "float shape", "embedding"),
             mean, node("Squeeze", "mean last", "level"), node("Mul", "level scale", "crucial")],
            ("frame", 2, [1, SIDE, SIDE, 3]), ("crucial", 1, [1, count]),
            shape=np.array([1, count, width]), last=np.array([2]),
            scale=np.array(1 / 255, np.float32),
        ),
    }  # fmt: skip


def encoder_file() -> bytes:
    """An encoder: the brightness of every patch, in four levels."""
    kernel = np.full((PATCH, PATCH, 3, 1), 1 / (PATCH * PATCH * 3), np.float32)
    seen = np.random.default_rng(0).integers(0, 4, (50, 1, 4, 4), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez(
        stream, kernel=kernel, bias=np.zeros(1, np.float32), shrink=np.array(1),
        centres=np.array([32, 96, 160, 224], np.float32), **trained(seen, 4).tables,
    )  # fmt: skip
    return stream.getvalue()


def _graph(nodes: list[Any], source: Any, target: Any, **constants: Any) -> bytes:
    """An ONNX model of `nodes`; `source` and `target` are (name, element type, shape), or lists."""
    from onnx import helper, numpy_helper

    inputs, outputs = (
        [
            helper.make_tensor_value_info(*each)
            for each in (side if isinstance(side, list) else [side])
        ]
        for side in (source, target)
    )
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "stub", inputs, outputs, held)
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def manifest(files: dict[str, bytes], name: str = "shades", **strategies: Any) -> Manifest:
    """A manifest of the four shades; what computes on the device is offered if `files` has it."""
    offered: dict[str, Any] = {
        "raw": {"codec": "lz4"},
        "jpeg": {"quality": 75, "scale": 1.0},
        "amot": {"r1": 0.25, "r2": 0.25, "threshold": 0.8, "codec": "mosaic", "quality": 75},
        "sdt": {"scale": 0.5, "r2": 0.25, "threshold": 0.8},
        "isr": {"scale": 0.5},
    }
    offered["offload"] = {
        "method": "jpeg",
        "signals": {"input": [[1, SIDE, SIDE], [2, SIDE // 2, SIDE // 2]]},
        "settings": {"input": {"jpeg": [{"scale": 1.0, "quality": 75}]}},
    }
    if "device/local.onnx" in files:
        offered["local"] = {"model": "local", "file": "device/local.onnx"}
    if "device/embed.onnx" in files:
        offered["po"] = {"embed": "device/embed.onnx", "block": "device/po.onnx"}
        offered["mbc"] = {"embed": "device/embed.onnx", "squeeze": "device/mbc.onnx"}
        offered["janus"] = {
            "weights": "weights/vit.safetensors", "embed": "weights/embed.onnx",
            "blocks": ["weights/block.onnx"], "last": "weights/last.onnx", "tokens": 16, "split": 1,
        }  # fmt: skip
        offered["df"] = {"filter": "device/df.onnx", "r": 0.25}
    if "device/exits.npz" in files:
        offered |= tiers_stub.offered(offered["janus"])
    if "device/deepcod-1.npz" in files:
        rates = [{"npz": "device/deepcod-1.npz"}]
        offered["deepcod"] = {"rate": 1, "points": [{"name": "input", "rates": rates}]}
    return Manifest(
        name=name,
        task="classify",
        classes=CLASSES,
        input=Input(SIDE, SIDE, 3, PATCH),
        strategies={**offered, **strategies},
        files=tuple(
            File(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()
        ),
    )


class Stub:
    """One server: `react` answers queries (None: never), `fetched` lists what was handed out."""

    def __init__(
        self,
        local: bool = False,
        name: str = "shades",
        token: str = "",
        computing: bool = False,
        **strategies: Any,
    ) -> None:
        self.files = {"device/local.onnx": local_model()} if local else {}
        self.files |= computing_models() if computing else {}
        self.manifest = manifest(self.files, name, **strategies)
        self.react: Reaction = self.classify
        self.queries: list[Query] = []
        self.fetched: list[str] = []
        self.hellos: list[Hello] = []
        self.port = 0
        self._token = token
        self._listener: Listener | None = None
        self._means: dict[int, Any] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Stub:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of last time if there was one."""
        self._listener = await serve("127.0.0.1", self.port, lambda channel: self)
        self.port = self._listener.port

    async def stop(self) -> None:
        """Be gone, as if the power were cut."""
        listener, self._listener = self._listener, None
        if listener is not None:
            for channel in list(listener.channels):
                channel.abort("gone")
            await listener.close("gone", grace=0.0)

    def on_message(self, channel: Channel, message: Message) -> None:
        match message:
            case Hello():
                self.hellos.append(message)
                if message.token != self._token:
                    channel.close(Bye("refused", "bad token"))
                    return
                strategies = tuple(self.manifest.strategies)
                channel.accept(
                    Welcome(
                        version=channel.version,
                        agent="stub",
                        profile=self.manifest.name,
                        digest=self.manifest.digest,
                        strategies=strategies,
                        packet_limit=1 << 24,
                        credits=8,
                    )
                )
            case Query():
                self.queries.append(message)
                answer = self.react(message)
                if answer is not None:
                    channel.send(replace(answer, id=message.id))
            case Fetch():
                self.fetched.append(message.path)
                data = self.files.get(message.path, b"")
                if message.path == "":
                    data = self.manifest.to_bytes()
                channel.stream(message.id, _chunks(data, message))

    def on_closed(self, channel: Channel, reason: str) -> None:
        pass

    def classify(self, query: Query) -> Result | Refusal:
        """The honest answer; A-MOT's first round wants the first four patches."""
        if query.step == "supply":
            probabilities = self._means.pop(query.memory, None)
            if probabilities is None:
                return Refusal("forgotten", "no such frame", retryable=False)
            return result(probabilities)
        name = "patches" if query.strategy == "amot" else "frame"
        probabilities = classify(decode(query.tensors[name]))
        if query.strategy != "amot" or query.params["threshold"] == 0:
            return result(probabilities)
        self._means[query.id] = probabilities
        return result(probabilities, wants=patches.pack(np.arange(4), 16))


def result(probabilities: Any, wants: bytes | None = None) -> Result:
    """A Result of the edge."""
    return Result("edge", {"probabilities": encode(probabilities)}, wants=wants, server_ms=0.5)


def _chunks(data: bytes, fetch: Fetch) -> Iterator[Chunk]:
    digest = hashlib.sha256(data).hexdigest()
    for offset in range(fetch.offset, max(len(data), 1), 1024):
        piece = np.frombuffer(data[offset : offset + 1024], dtype=np.uint8)
        yield Chunk(offset, len(data), digest, {"data": encode(piece)}, id=fetch.id)
