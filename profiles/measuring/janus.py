"""What Janus's scheduler predicts from: how long a layer takes on both machines, and bytes.

Janus, section III-C: the latency of a layer against its number of tokens, a line by least squares
for each machine. All layers of a vision transformer have one shape, so one of them is measured, at
KNOTS numbers of tokens up to all, with and without merging. `device.machine` says when the line is
used and when what was measured is. The device's part runs in ONNX Runtime with one thread, as it
does there; the server's in torch, on its accelerator if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.codec import encode
from common.errors import ConfigError
from common.merging import limit
from common.messages import Tensor
from common.profile import Profile
from common.tokens import pack
from device import inference
from device.head import Head
from device.machine import BAD, Machine
from profiles.measuring import milliseconds
from server.models import merging
from server.models.checkpoint import load_model
from server.models.vit import VisionTransformer

NAME = "janus"
KNOTS = 12
PRECISIONS = ("fp32", "fp16", "int8")
FRAMES: dict[str, tuple[str, dict[str, int]]] = {
    **{f"jpeg-{quality}": ("jpeg", {"quality": quality}) for quality in (90, 75, 50)},
    **{codec: (codec, {}) for codec in ("raw", "lz4", "zstd", "lzw")},
}
"""Every way to send a frame: codec and options."""
Layer = Callable[[int, int], Callable[[], object]]
"""(tokens, merged) -> a call that runs one layer so."""
DIGITS = 4


def measure(profile: Profile) -> dict[str, Any]:
    """{"latency": {"device": ..., "server": ..., "codings": ..., "frames": ...}}."""
    params = profile.manifest.params(NAME)
    vit = _classifier(profile)
    at = profile.directory
    head = Head(at / params["embed"], [at / each for each in params["blocks"]], at / params["last"])
    total = int(params["tokens"])
    picture = smooth(profile.manifest.input.height, profile.manifest.input.width)
    device = on_device(at / params["blocks"][0], vit.config.dim, knots(total))
    tokens, sizes = head.run(picture, [0] * len(params["blocks"]))
    first = milliseconds(lambda: head.run(picture, []))
    last = milliseconds(lambda: head.classify(tokens, sizes))
    latency = {
        "device": Machine(device.tokens, device.ms, device.merging, first, last).written(),
        "server": on_server(vit, knots(total)).written(),
        "codings": codings(head, picture, total, str(params.get("codec", "zstd"))),
        "frames": frames(picture),
    }
    return {"latency": _rounded(latency)}


def knots(tokens: int, count: int = KNOTS) -> list[int]:
    """`count` numbers of tokens up to all, evenly apart; the first merges one at least."""
    return sorted({int(n) for n in np.linspace(max(4, tokens // count), tokens, count).round()})


def curve(layer: Layer, tokens: Sequence[int]) -> Machine:
    """The times of `layer` at `tokens`; merging is what one token merged takes more than none."""
    plain = [milliseconds(layer(n, 0)) for n in tokens]
    merged = [milliseconds(layer(n, 1)) for n in tokens]
    more = [max(0.0, b - a) for a, b in zip(plain, merged, strict=True)]
    return Machine(tuple(map(float, tokens)), tuple(plain), tuple(more))


def on_device(block: Any, dim: int, tokens: Sequence[int]) -> Machine:
    """One block's graph in ONNX Runtime."""
    session = inference.session(block)
    random = np.random.default_rng(0)

    def layer(n: int, r: int) -> Callable[[], object]:
        given = {
            "tokens": random.standard_normal((n, dim)).astype(np.float32),
            "sizes": np.ones(n, np.float32),
            "merge": np.array([r], np.int64),
        }
        return lambda: session.run(["tokens.out", "sizes.out"], given)

    return curve(layer, tokens)


@torch.inference_mode()
def on_server(vit: VisionTransformer, tokens: Sequence[int]) -> Machine:
    """One block of `vit` in torch, the embedding and the head, at batch 1."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vit = vit.to(place)

    def waited(call: Callable[[], object]) -> Callable[[], object]:
        def done() -> None:
            call()
            if place.type == "cuda":
                torch.cuda.synchronize()

        return done

    def layer(n: int, r: int) -> Callable[[], object]:
        x = torch.randn(1, n, vit.config.dim, device=place)
        size = merging.unmerged(x)
        return waited(lambda: merging.run(vit.blocks[:1], x, size, [r]))

    made = curve(layer, tokens)
    config = vit.config
    patches = torch.rand(1, config.frames * config.grid**2, config.patch_size, device=place)
    x = vit.embed(patches)
    first, last = (
        milliseconds(waited(call))
        for call in (lambda: vit.embed(patches), lambda: vit.forward_head(x))
    )
    return Machine(made.tokens, made.ms, made.merging, first, last)


def codings(
    head: Head, picture: npt.NDArray[np.uint8], total: int, codec: str
) -> dict[str, dict[str, float]]:
    """Of each precision: bytes a token and a frame by least squares, and ms to code a token.

    Of tokens behind the first layers, all, and merged to a half, a quarter and an eighth.
    """
    made: dict[str, dict[str, float]] = {}
    ways = [[0], [total // 2], [total // 2, total // 4], [total // 2, total // 4, total // 8]]
    runs = [head.run(picture, limit(merges, total)) for merges in ways[: head.layers + 1]]
    for precision in PRECISIONS:

        def code(run: tuple[Any, Any], precision: str = precision) -> dict[str, Tensor]:
            tokens, sizes = run
            sent = pack(tokens, precision, codec)
            return sent | {"sizes": encode(sizes.astype(np.uint16), codec)}

        counts = [len(tokens) for tokens, _ in runs]
        sizes = [sum(len(tensor.data) for tensor in code(run).values()) for run in runs]
        token, fixed = np.polyfit(counts, sizes, 1)
        spent = milliseconds(lambda code=code: code(runs[0])) / counts[0]  # type: ignore[misc]
        made[precision] = {"token": float(token), "fixed": max(0.0, float(fixed)), "ms": spent}
    return made


def frames(picture: npt.NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    """Bytes and ms of a coded frame; split=auto goes on from there by what its own frames take."""
    made = {}
    for name, (codec, options) in FRAMES.items():

        def code(codec: str = codec, options: Mapping[str, int] = options) -> Tensor:
            return encode(picture, codec, **options)

        made[name] = {"fixed": float(len(code().data)), "ms": milliseconds(code)}
    return made


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] of smooth colours, edges and a little noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (9 + 5 * c) + x / (14 - 3 * c)) * 60 + 128 for c in range(3)]
    picture = np.stack(waves, -1) + 40.0 * ((x // 24 + y // 31) % 2)[..., None]
    noisy = picture + random.normal(0, 4, picture.shape)
    return np.asarray(noisy.clip(0, 255), np.uint8)


def tables(measured: Mapping[str, Any]) -> str:
    """The lines and what they miss, a column of the table for each machine."""
    latency = measured["latency"]
    machines = {side: Machine.read(latency[side]) for side in ("device", "server")}
    lines = ["| | a, ms a token | b, ms | correlation | mean error | worst | first, last ms |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for side, machine in machines.items():
        slope, intercept = machine.fit
        lines.append(
            f"| {side} | {slope:.5f} | {intercept:.3f} | {machine.correlation:.4f} "
            f"| {machine.error:.1%} | {machine.missed.max():.1%} "
            f"| {machine.first:.2f}, {machine.last:.2f} |"
        )
    lines += ["", "| tokens | device: ms, line | used | server: ms, line | used |",
              "|---:|---:|---|---:|---|"]  # fmt: skip
    for i, n in enumerate(machines["device"].tokens):
        cells = []
        for machine in machines.values():
            used = "table" if machine.missed[i] > BAD else "line"
            cells += [f"{machine.ms[i]:.3f}, {machine.line(n):.3f}", used]
        lines.append(f"| {n:.0f} | {' | '.join(cells)} |")
    lines += ["", "| tokens as | bytes a token | bytes a frame | device ms a token |",
              "|---|---:|---:|---:|"]  # fmt: skip
    for name, coding in latency["codings"].items():
        lines.append(
            f"| {name} | {coding['token']:.1f} | {coding['fixed']:.0f} | {coding['ms']:.5f} |"
        )
    return "\n".join(lines)


def _classifier(profile: Profile) -> VisionTransformer:
    for model in profile.models.values():
        if model.kind == "vit":
            vit = load_model(model.file, model.kind, model.config)
            assert isinstance(vit, VisionTransformer)
            return vit
    raise ConfigError(f"profile {profile.name!r} has no model of kind 'vit'")


def _rounded(value: Any) -> Any:
    """Numbers with DIGITS significant digits: a profile is read by people, too."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
