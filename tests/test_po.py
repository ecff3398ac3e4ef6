"""PO: the head in ONNX, the wire and the tail are the unsplit classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common import profile as profiles_of
from common.codec import decode, encode
from common.errors import Refused
from common.messages import Query
from device import inference
from device.bundle import Bundle
from device.strategies import po as device_po
from device.strategy import Frame, Plan
from profiles.export_split import EMBEDDING, FRAME, TOKENS, po_onnx, rows_onnx
from profiles.graph import macs
from profiles.train.patchwork import to_patches
from server.memory import NOTHING
from server.models.vit import VisionTransformer, ViTConfig
from server.serving import Serving
from server.strategies import po as server_po
from tests.profiles import picture, tiny

LINEAR = ViTConfig(dim=24, depth=2, heads=3, classes=5, image=64, mean=(0.3, 0.4, 0.5))
LOCAL = replace(LINEAR, stem="local", stem_width=4, mixers=2)


def classifier(config: ViTConfig) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(config).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            low, high = (0.3, 2.0) if name.endswith("running_var") else (-0.3, 0.3)
            value.uniform_(low, high)
            value.copy_(value.half())  # as published weights are
    return model


@pytest.fixture(params=[LINEAR, LOCAL], ids=["linear", "local"])
def vit(request: pytest.FixtureRequest) -> VisionTransformer:
    return classifier(request.param)


def test_the_head_is_the_classifiers_own_first_layers(
    vit: VisionTransformer, tmp_path: Path
) -> None:
    weights = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), weights)
    (rows, macs), (po, more) = rows_onnx(vit, weights), po_onnx(vit, weights)
    embed = inference.load(rows, FRAME, EMBEDDING)
    block = inference.load(po, EMBEDDING, TOKENS)
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        placed = vit.embed(to_patches(frame[None]))
        expected = vit.blocks[0](placed)[0].numpy()
    embedding = embed(frame)
    plain = (placed - vit.pos_embed)[0, 1:].numpy()
    np.testing.assert_allclose(embedding, plain, atol=1e-4)
    np.testing.assert_allclose(block(embedding), expected, atol=1e-4)
    assert np.ptp(expected) > 0.5
    assert macs + more == counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Serving, device_po.Po]:
    profile = profiles_of.load(tiny(tmp_path_factory.mktemp("profile")))
    present = {file.path for file in profile.manifest.files}
    bundle = Bundle(profile.manifest, profile.directory, present)
    return Serving(profile), device_po.create(bundle)


def asked(pair: tuple[Serving, device_po.Po], seed: int, **params: str) -> Query:
    frame = Frame(seed, str(seed), picture(pair[0].profile, seed), 0.0)
    return next(pair[1].infer(frame, Plan("po", params)))


@pytest.mark.parametrize(("precision", "apart"), [("fp16", 1e-3), ("int8", 0.02)])
@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_head_wire_and_tail_answer_as_the_whole_model_does(
    pair: tuple[Serving, device_po.Po], precision: str, apart: float, codec: str
) -> None:
    served = server_po.create(pair[0])
    for seed in range(4):
        query = asked(pair, seed, precision=precision, codec=codec)
        (outcome,) = served.forward([served.prepare(query, NOTHING)])
        frame = picture(pair[0].profile, seed)
        whole, _ = pair[0].classify(to_patches(frame[None]))
        np.testing.assert_allclose(outcome.probabilities, whole[0], atol=apart)


def test_int8_tokens_are_within_half_a_step_of_the_real_ones(
    pair: tuple[Serving, device_po.Po],
) -> None:
    exact = decode(asked(pair, 0, precision="fp16").tensors["tokens"]).astype(np.float32)
    tensors = asked(pair, 0, precision="int8").tensors
    values, scales = decode(tensors["tokens"]), decode(tensors["scales"]).astype(np.float32)
    assert np.abs(values).max() <= 127
    error = np.abs(values * scales[:, None] - exact)
    assert (error <= 0.51 * scales[:, None] + 1e-3 * np.abs(exact)).all()
    assert (scales <= np.abs(exact).max(1) / 120).all()


def test_tokens_that_are_no_numbers_are_refused(pair: tuple[Serving, device_po.Po]) -> None:
    served = server_po.create(pair[0])
    query = asked(pair, 0)
    scales = decode(query.tensors["scales"]).copy()
    scales[3] = np.inf
    spoiled = {**query.tensors, "scales": encode(scales)}
    with pytest.raises(Refused, match="finite"):
        served.prepare(replace(query, tensors=spoiled), NOTHING)


@pytest.mark.parametrize("name", ["signs", "imagenette"])
def test_the_published_files_belong_to_the_published_classifier(name: str) -> None:
    """What was exported from an earlier classifier would answer wrongly, and say nothing."""
    profile = profiles_of.load(name)
    params = profile.manifest.params("po")
    embed = inference.load(profile.directory / params["embed"], FRAME, EMBEDDING)
    block = inference.load(profile.directory / params["block"], EMBEDDING, TOKENS)
    vit = Serving(profile).classifier
    frame = picture(profile)
    with torch.no_grad():
        expected = vit.blocks[0](vit.embed(to_patches(frame[None])))[0].numpy()
    np.testing.assert_allclose(block(embed(frame)), expected, atol=1e-3)
    counted = sum(
        macs(onnx.load(str(profile.directory / params[key]))) for key in ("embed", "block")
    )
    assert params["device_macs"] == counted
