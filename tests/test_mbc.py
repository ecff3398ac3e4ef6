"""MBC: the bottleneck, its training against a frozen classifier, and what travels."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import profile as profiles_of
from common.codec import decode, encode
from common.errors import ConfigError, Refused
from common.messages import Query
from device import inference
from device.bundle import Bundle
from device.strategies import mbc as device_mbc
from device.strategy import Frame, Plan
from profiles.export_split import EMBEDDING, LATENT, mbc_onnx
from profiles.train import bottleneck
from profiles.train.loop import Budget
from profiles.train.patchwork import to_patches
from server.memory import NOTHING
from server.models.bottleneck import Bottleneck, BottleneckConfig
from server.models.checkpoint import load_model, save_weights
from server.models.vit import VisionTransformer, ViTConfig
from server.serving import Serving
from server.strategies import mbc as server_mbc
from tests.profiles import picture, tiny

VIT = ViTConfig(dim=16, depth=2, heads=2, classes=4, image=64)
SHAPE = BottleneckConfig(dim=16, channels=4, levels=8, mixers=1, grid=4)


def classifier() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(VIT).eval().requires_grad_(False)
    model.head.weight.normal_(std=1.0)
    return model


def frames(count: int = 16) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 16, 16, 1))).astype(np.uint8)


def plain(vit: VisionTransformer) -> torch.Tensor:
    return (vit.embed(to_patches(frames())) - vit.pos_embed)[:, 1:]


@torch.no_grad()
def test_with_room_for_everything_it_loses_nothing() -> None:
    vit = classifier()
    model = bottleneck.start(replace(SHAPE, channels=16, levels=4096), vit, frames())
    wanted = vit.embed(to_patches(frames()))
    error = (model(plain(vit)) - wanted).square().mean() / plain(vit).var()
    assert error < 0.01  # what lies beyond the quantiser's range


@torch.no_grad()
def test_it_starts_with_the_components_that_matter_most() -> None:
    vit = classifier()
    kept = [
        float((bottleneck.start(replace(SHAPE, channels=c), vit, frames())(plain(vit))[:, 1:]
               - vit.embed(to_patches(frames()))[:, 1:]).square().mean())
        for c in (1, 2, 3)
    ]  # fmt: skip
    assert kept == sorted(kept, reverse=True)
    symbols = bottleneck.start(SHAPE, vit, frames()).encode(plain(vit)).round()
    assert symbols.min() >= 0
    assert symbols.max() <= SHAPE.levels - 1
    assert len(symbols.unique()) == SHAPE.levels


def test_training_brings_the_answers_nearer(tmp_path: Path) -> None:
    vit, data = classifier(), frames()

    def apart(model: Bottleneck) -> float:
        with torch.no_grad():
            wanted = vit(to_patches(data)).logits
            return float((bottleneck.answers(vit, model(plain(vit))) - wanted).abs().mean())

    shape = replace(SHAPE, channels=1)
    before = bottleneck.start(shape, vit, data)
    after, _ = bottleneck.train(
        shape, vit, lambda tick: data[tick.indices], data, len(data), tmp_path / "mbc.ckpt",
        Budget(steps=40), 0, False,
    )  # fmt: skip
    assert apart(after) < 0.8 * apart(before)
    assert all(not value.requires_grad for value in vit.parameters())


@torch.no_grad()
def test_the_device_computes_the_symbols_that_torch_does(tmp_path: Path) -> None:
    vit = classifier()
    model = bottleneck.start(SHAPE, vit, frames())
    save_weights(model, tmp_path / "mbc.safetensors")
    served = load_model(tmp_path / "mbc.safetensors", "bottleneck", asdict(SHAPE))
    assert isinstance(served, Bottleneck)
    assert mbc_onnx(served, tmp_path / "mbc.onnx") == 16 * 16 * 4
    squeeze = inference.load(tmp_path / "mbc.onnx", EMBEDDING, LATENT)
    for tokens in plain(vit):
        expected = served.encode(tokens[None])[0].numpy()
        np.testing.assert_allclose(squeeze(tokens.numpy()), expected, atol=2e-3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Serving, Query]:
    profile = profiles_of.load(tiny(tmp_path_factory.mktemp("profile")))
    present = {file.path for file in profile.manifest.files}
    strategy = device_mbc.create(Bundle(profile.manifest, profile.directory, present))
    frame = Frame(0, "0", picture(profile), 0.0)
    return Serving(profile), next(strategy.infer(frame, Plan("mbc", {"codec": "zstd"})))


def test_the_wire_carries_small_whole_numbers(served: tuple[Serving, Query]) -> None:
    symbols = decode(served[1].tensors["symbols"])
    assert (symbols.dtype, symbols.shape) == (np.uint8, (4, 16))
    assert symbols.max() < 16
    assert len(np.unique(symbols)) > 2


def test_symbols_beyond_the_levels_are_refused(served: tuple[Serving, Query]) -> None:
    serving, query = served
    symbols = decode(query.tensors["symbols"]).copy()
    symbols[0, 0] = 16
    with pytest.raises(Refused, match="beyond"):
        server_mbc.create(serving).prepare(
            replace(query, tensors={"symbols": encode(symbols)}), NOTHING
        )


def test_a_bottleneck_of_another_classifier_is_a_mistake_of_the_profile(
    served: tuple[Serving, Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Bottleneck(replace(SHAPE, dim=8))
    monkeypatch.setitem(served[0]._models, "bottleneck", other)
    with pytest.raises(ConfigError, match="does not fit"):
        server_mbc.create(served[0])
