"""Janus: wherever the model is split, head, wire and tail are the unsplit model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from common import merging as schedules
from common import profile as profiles_of
from common.codec import decode, encode
from common.errors import ConfigError, Refused
from common.messages import Query, Result
from common.tokens import pack, restore
from device import inference
from device.bundle import Bundle
from device.strategies import janus as on_device
from device.strategy import Answer, Frame, Plan
from profiles.export_janus import publish
from profiles.train.patchwork import to_patches
from server.memory import NOTHING
from server.models import merging
from server.models.checkpoint import save_weights
from server.models.vit import VisionTransformer, ViTConfig
from server.serving import Serving
from server.strategies import janus as on_server

LINEAR = ViTConfig(dim=24, depth=4, heads=3, classes=5, image=96, mean=(0.3, 0.4, 0.5), pool="avg")
LOCAL = replace(LINEAR, stem="local", stem_width=4, mixers=2, pool="cls")
CLIP = replace(LOCAL, mixers=0, image=48, frames=8, tubelet=2)
"""As many tokens as a picture's, in four steps of 3x3."""
LAYERS, TOKENS = 4, 37
ALPHAS = (0.0, 0.6, schedules.alpha_max(LAYERS, TOKENS))
EXACT = {"precision": "fp32", "frame": "zstd"}


class Pair:
    """Both halves over a profile of one random model."""

    def __init__(self, root: Path, config: ViTConfig) -> None:
        torch.manual_seed(0)
        model = VisionTransformer(config)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.uniform_(*_range(name))
        save_weights(model, root / "weights" / "vit.safetensors")
        entry = {
            "kind": "vit", "file": "weights/vit.safetensors", "config": asdict(config),
            "sha256": profiles_of.sha256(root / "weights" / "vit.safetensors"),
        }  # fmt: skip
        document = {
            "format": 1, "name": "one", "task": "classify" if config.frames == 1 else "watch",
            "classes": list("abcde"),
            "input": {
                "height": config.frames * config.image, "width": config.image, "channels": 3,
                "patch": 16,
            },
            "models": {"vit": entry}, "strategies": {}, "device": {"files": []}, "made": {},
        }  # fmt: skip
        (root / "profile.json").write_text(json.dumps(document))
        publish(root)
        self.profile = profiles_of.load(root)
        present = {file.path for file in self.profile.manifest.files}
        self.bundle = Bundle(self.profile.manifest, self.profile.directory, present)
        self.serving = Serving(self.profile)
        self.server = on_server.create(self.serving)
        self.device = on_device.create(self.bundle)

    def ask(self, seed: int, **params: Any) -> Query:
        return next(self.device.infer(self.frame(seed), Plan("janus", params)))

    def frame(self, seed: int) -> Frame:
        """A picture of coloured patches, or a clip of them."""
        size, random = self.profile.manifest.input, np.random.default_rng(seed)
        coarse = random.integers(0, 216, (size.height // 16, size.width // 16, 3))
        fine = random.integers(0, 40, (size.height, size.width, 3))
        pixels = (coarse.repeat(16, 0).repeat(16, 1) + fine).astype(np.uint8)
        if size.height > size.width:
            pixels = pixels.reshape(-1, size.width, size.width, 3)
        return Frame(seed, str(seed), pixels, 0.0)

    def seen(self, seed: int) -> npt.NDArray[np.uint8]:
        """What the model looks at."""
        return self.device.view(self.frame(seed))

    def probabilities(self, seed: int, **params: Any) -> npt.NDArray[np.float32]:
        """The whole conversation; by class, in order."""
        talk = self.device.infer(self.frame(seed), Plan("janus", params))
        try:
            query = next(talk)
            (outcome,) = self.server.forward([self.server.prepare(query, NOTHING)])
            talk.send(Result("edge", {"probabilities": encode(outcome.probabilities)}))
        except StopIteration as stop:
            answer: Answer = stop.value
        assert answer.rounds == (0 if params["split"] > LAYERS else 1)
        assert answer.source == ("device" if params["split"] > LAYERS else "edge")
        return np.array([dict(answer.top)[name] for name in "abcde"], np.float32)

    @torch.inference_mode()
    def unsplit(self, seed: int, merges: tuple[int, ...]) -> npt.NDArray[np.float32]:
        vit = self.serving.classifier
        x = vit.embed(to_patches(self.seen(seed)[None]))
        if any(merges):
            logits = vit.forward_head(*merging.run(vit.blocks, x, merging.unmerged(x), merges))
        else:
            logits = vit.forward_head(vit.forward_features(x)[0])
        return logits.softmax(-1)[0].numpy()


def _range(name: str) -> tuple[float, float]:
    if "norm" in name and name.endswith(("weight", "running_var")):
        return 0.5, 2.0
    return (-0.5, 0.5) if name == "head.weight" else (-0.3, 0.3)


@pytest.fixture(scope="module", params=[LINEAR, LOCAL, CLIP], ids=["linear", "local", "clip"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("one"), request.param)


@pytest.mark.parametrize("split", range(LAYERS + 2))
@pytest.mark.parametrize("alpha", ALPHAS)
def test_head_wire_and_tail_are_the_unsplit_model(pair: Pair, split: int, alpha: float) -> None:
    merges = schedules.schedule(alpha, LAYERS, TOKENS)
    assert any(merges) == (alpha > 0)
    for seed in range(3):
        got = pair.probabilities(seed, split=split, alpha=alpha, **EXACT)
        np.testing.assert_allclose(got, pair.unsplit(seed, merges), atol=2e-5)


@pytest.mark.parametrize("split", [0, 2, LAYERS + 1])
@pytest.mark.parametrize(
    ("params", "merges"),
    [
        ({"schedule": "fixed", "r": 5}, (5, 5, 5, 5)),
        ({"schedule": "fixed", "r": 99}, (18, 9, 4, 2)),
        ({"schedule": "linear", "alpha": 3.0}, (9, 6, 3, 0)),
    ],
)
def test_other_schedules_are_the_unsplit_model_too(
    pair: Pair, split: int, params: dict[str, Any], merges: tuple[int, ...]
) -> None:
    got = pair.probabilities(1, split=split, **params, **EXACT)
    np.testing.assert_allclose(got, pair.unsplit(1, merges), atol=2e-5)


def test_merging_changes_answers(pair: Pair) -> None:
    """Or the tests above would pass without any."""
    few, many = (pair.unsplit(0, schedules.schedule(a, LAYERS, TOKENS)) for a in ALPHAS[::2])
    assert np.abs(few - many).max() > 1e-3


@pytest.mark.parametrize(("precision", "apart"), [("fp16", 2e-3), ("int8", 0.03)])
@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd", "lzw"])
def test_fewer_bits_are_close(pair: Pair, precision: str, apart: float, codec: str) -> None:
    for split in (1, 3):
        params = {"split": split, "alpha": 0.6}
        query = pair.ask(2, **params, precision=precision, codec=codec)
        assert {tensor.codec for name, tensor in query.tensors.items() if name != "scales"} == {
            codec
        }
        (outcome,) = pair.server.forward([pair.server.prepare(query, NOTHING)])
        exact = pair.probabilities(2, **params, **EXACT)
        np.testing.assert_allclose(outcome.probabilities, exact, atol=apart)


def test_merged_tokens_travel_with_their_sizes(pair: Pair) -> None:
    merges = schedules.schedule(0.6, LAYERS, TOKENS)
    query = pair.ask(0, split=2, alpha=0.6)
    sizes = decode(query.tensors["sizes"])
    left = schedules.remaining(merges, TOKENS)[2]
    assert query.tensors["tokens"].shape == (left, 24)
    assert sizes.dtype == np.uint16
    assert sizes.sum() == TOKENS
    assert sizes.max() > 1
    assert query.params["merges"] == list(merges[2:])


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd", "lzw", "jpeg"])
def test_split_zero_sends_the_frame(pair: Pair, codec: str) -> None:
    query = pair.ask(0, split=0, frame=codec, quality=95)
    assert query.step == "frame"
    assert query.tensors["frame"].codec == codec
    sent = decode(query.tensors["frame"])
    if codec != "jpeg":
        assert np.array_equal(sent, pair.seen(0))


def test_a_block_is_opened_when_it_is_first_needed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real: Callable[[Path], Any] = inference.session

    def noted(path: Path) -> Any:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(inference, "session", noted)
    strategy = on_device.create(pair.bundle)
    for split in (0, 2, 1, 3):
        next(strategy.infer(pair.frame(0), Plan("janus", {"split": split})))
    assert opened == ["vit-embed.onnx", *(f"vit-block{n}.onnx" for n in (1, 2, 3))]


def test_the_graphs_hold_no_weights(pair: Pair) -> None:
    """But the convolutions of the local stem, which have their batch norms folded in."""
    folder = pair.profile.directory / "weights"
    blocks = list(folder.glob("vit-block*.onnx"))
    assert len(blocks) == LAYERS
    assert all(path.stat().st_size < 8000 < 12 * LINEAR.dim**2 * 2 for path in blocks)


@pytest.mark.parametrize(
    ("params", "text"),
    [({"split": LAYERS + 2}, "0 to 5"), ({"alpha": 3.0}, "allow 0 to"), ({"alpha": -1.0}, "allow")],
)
def test_what_the_model_has_not_is_said(pair: Pair, params: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pair.ask(0, **params)


@pytest.mark.parametrize(
    "merges",
    [
        None,
        3,
        [1, 1],
        [1, 1, 1, 1],
        [19],
        [-1, 0],
        ["1", 0],
        [1.0, 0],
        [True, 0],
        [[1], 0],
        [0] * 9,
    ],
)
def test_merges_that_cannot_be_are_refused(pair: Pair, merges: Any) -> None:
    for query, valid in ((pair.ask(0, split=0), 4), (pair.ask(0, split=2, alpha=0.6), 2)):
        changed = replace(query, params={} if merges is None else {"merges": merges})
        if merges in ([1, 1], [1, 1, 1, 1]) and len(merges) == valid:
            pair.server.prepare(changed, NOTHING)
        else:
            with pytest.raises(Refused, match="bad"):
                pair.server.prepare(changed, NOTHING)


@pytest.mark.parametrize("wrong", ["short", "zero", "more", "dtype"])
def test_sizes_that_cannot_be_are_refused(pair: Pair, wrong: str) -> None:
    query = pair.ask(0, split=2, alpha=0.6)
    sizes = decode(query.tensors["sizes"]).copy()
    if wrong == "short":
        sizes = sizes[:-1]
    elif wrong == "zero":
        sizes[np.argmax(sizes)] -= 1
        sizes[0] += 1
        sizes[1], sizes[2] = sizes[1] + sizes[2], 0
    elif wrong == "more":
        sizes[3] += 1
    else:
        sizes = sizes.astype(np.int32)
    with pytest.raises(Refused, match="sizes"):
        pair.server.prepare(
            replace(query, tensors={**query.tensors, "sizes": encode(sizes)}), NOTHING
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_tokens_that_would_overflow_are_refused(pair: Pair, value: float) -> None:
    query = pair.ask(0, split=1, **EXACT)
    tokens = decode(query.tensors["tokens"]).copy()
    tokens[3, 4] = value
    with pytest.raises(Refused, match="finite"):
        pair.server.prepare(
            replace(query, tensors={**query.tensors, "tokens": encode(tokens)}), NOTHING
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tokens_survive_the_wire(precision: str) -> None:
    """A byte is within half a step of the token's own scale, whatever the others are like."""
    random = np.random.default_rng(0)
    scaled = random.standard_normal((9, 32)) * 10.0 ** np.arange(-4, 5)[:, None]
    tokens = scaled.astype(np.float32)
    packed = {key: decode(each) for key, each in pack(tokens, precision, "lz4").items()}
    back = restore(packed["tokens"], packed.get("scales"))
    step = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.51 / 126}[precision]
    bound = step * np.abs(tokens).max(1, keepdims=True) + (1e-6 if precision != "fp32" else 0)
    assert (np.abs(back - tokens) <= bound).all()


def test_the_published_graphs_belong_to_the_published_classifier() -> None:
    """Graphs of other weights than those beside them would answer wrongly, and say nothing."""
    profile = profiles_of.load("imagenette")
    present = {file.path for file in profile.manifest.files}
    device = on_device.create(Bundle(profile.manifest, profile.directory, present))
    vit = Serving(profile).classifier
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    merges = schedules.schedule(0.5, 6, 197)
    with torch.no_grad():
        x = vit.embed(to_patches(pixels[None]))
        x, sizes = merging.run(vit.blocks, x, merging.unmerged(x), merges)
        expected = vit.forward_head(x, sizes).softmax(-1)[0].numpy()
    got = device.head.classify(*device.head.run(pixels, merges))
    np.testing.assert_allclose(got, expected, atol=1e-3)
