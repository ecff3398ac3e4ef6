"""DeepCOD's model, equation by equation, on pictures, maps and sequences."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from server.models.backbone import as_patches, layers_of
from server.models.checkpoint import load_model, save_weights
from server.models.cnn import Cnn, CnnConfig
from server.models.deepcod import (
    DeepCOD,
    DeepCODConfig,
    Quantizer,
    Rates,
    RatesConfig,
    constrain,
    rate,
    settle,
)
from server.models.vit import VisionTransformer, ViTConfig

PICTURE = DeepCODConfig((32, 48), channels=6, levels=5, widths=(16, 8, 8))
MAP = DeepCODConfig((14, 14), inputs=10, channels=4, kernel=2, widths=(16, 8))
SPEECH = DeepCODConfig((64,), inputs=12, channels=3, kernel=4, widths=(16, 8, 8))
COARSE = DeepCODConfig((64, 64), channels=8, kernel=8, widths=(16, 8, 8))
KINDS = pytest.mark.parametrize("config", [PICTURE, MAP, SPEECH, COARSE])


def made(config: DeepCODConfig, seed: int = 0) -> DeepCOD:
    """A codec whose centres lie where the noise of `signal` falls."""
    torch.manual_seed(seed)
    model = DeepCOD(config)
    with torch.no_grad():
        model.quantizer.centres.copy_(torch.linspace(-1, 1, config.levels))
    return model


def signal(config: DeepCODConfig, count: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, config.inputs, *config.size) * 2 - 1


@KINDS
def test_symbols_and_restoration_have_their_shapes(config: DeepCODConfig) -> None:
    model, x = made(config).eval(), signal(config)
    symbols = model.encode(x)
    assert symbols.shape == (3, config.channels, *config.grid)
    assert symbols.dtype == torch.int64
    assert 0 <= int(symbols.min()) < int(symbols.max()) < config.levels
    restored = model.decode(symbols)
    assert restored.shape == (3, config.inputs, *(side // config.shrink for side in config.size))
    assert float(restored.detach().abs().max()) <= 1


def test_the_encoder_is_one_convolution_whose_stride_is_its_kernel() -> None:
    """Figure 3: every symbol sees its own place alone, and there is no bias."""
    model, x = made(PICTURE), signal(PICTURE)
    before = model.encoder(x)
    x[:, :, 4:8, 8:12] += 0.5
    changed = (model.encoder(x) - before).abs().sum((0, 1)) > 1e-5
    assert changed.nonzero().tolist() == [[1, 2]]
    assert model.encoder.bias is None
    assert sum(p.numel() for p in model.encoder.parameters()) == 4 * 4 * 3 * 6


@torch.no_grad()
def test_equation_7_is_zero_for_an_isometry_alone() -> None:
    model = made(PICTURE)
    assert float(model.isometry()) < 1e-5
    inside = model.encoder.weight.detach()[0]
    for scale in (1.0, 2.0):
        model.encoder.weight.mul_(scale)
        wanted = (scale**2 - 1) * math.sqrt(PICTURE.channels)
        assert float(model.isometry()) == pytest.approx(wanted, abs=1e-4)
    # What lies in the encoder's subspace keeps its length (6 with gamma = 1).
    model.encoder.weight.div_(2.0)
    alone = torch.zeros(1, 3, 32, 48)
    alone[0, :, :4, :4] = inside
    assert float(model.encoder(alone).norm()) == pytest.approx(float(inside.norm()), rel=1e-4)


def test_equation_12_takes_the_nearest_centre() -> None:
    quantizer = Quantizer(4)
    with torch.no_grad():
        quantizer.centres.copy_(torch.tensor([-3.0, -1.0, 0.5, 4.0]))
    y = torch.tensor([-9.0, -2.01, -2.0, -1.99, -0.25, -0.24, 2.24, 2.26, 50.0])
    assert quantizer.indices(y).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    y = torch.randn(1000) * 4
    nearest = (y[:, None] - quantizer.centres).abs().argmin(1)
    assert torch.equal(quantizer.indices(y), nearest)


def test_equation_13_forward_hard_backward_soft() -> None:
    quantizer = Quantizer(3)
    centres = torch.tensor([-1.0, 0.5, 2.0])
    with torch.no_grad():
        quantizer.centres.copy_(centres)
    y = torch.tensor([-0.9, 0.1, 1.3, 5.0]).view(1, 2, 2).requires_grad_()
    found, _ = quantizer(y)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 0.5, 2.0, 2.0]))
    found.sum().backward()

    plain, learned = y.detach().clone().requires_grad_(), centres.clone().requires_grad_()
    weights = torch.exp(-(plain[..., None] - learned).abs())
    soft = (weights / weights.sum(-1, keepdim=True) * learned).sum(-1)
    soft.sum().backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    assert quantizer.centres.grad is not None
    torch.testing.assert_close(y.grad, plain.grad)
    torch.testing.assert_close(quantizer.centres.grad, learned.grad)
    assert float(y.grad.abs().min()) > 0


def test_equation_9_leaves_weights_of_norm_one() -> None:
    model = constrain(made(PICTURE)).train()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3.0)
    settle(model)
    weights = [(n, p) for n, p in model.decoder.named_parameters() if p.ndim > 1]
    assert len(weights) == 1 + 3 + 2 * 3 + 1
    for name, weight in weights:
        transposed = name.endswith(("up.weight", "shortcut.weight"))
        matrix = (weight.transpose(0, 1) if transposed else weight).flatten(1)
        assert float(torch.linalg.matrix_norm(matrix.detach(), 2)) == pytest.approx(1, abs=0.02)


@KINDS
def test_gradients_reach_everything_that_learns(config: DeepCODConfig) -> None:
    model, x = constrain(made(config)).train(), signal(config)
    with torch.no_grad():
        model.decoder[1].gamma.fill_(0.5)  # type: ignore[operator]
    restored, bits = model(x)
    (restored.square().mean() + bits + model.isometry()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@KINDS
def test_training_and_serving_restore_alike(config: DeepCODConfig) -> None:
    model, x = settle(constrain(made(config))), signal(config)
    with torch.no_grad():
        restored, _ = model(x)
        torch.testing.assert_close(restored, model.decode(model.encode(x)), atol=1e-5, rtol=1e-5)


def test_settling_sorts_the_centres() -> None:
    model = made(PICTURE)
    with torch.no_grad():
        model.quantizer.centres.copy_(torch.tensor([3.0, -1, 0, 7, -5]))
    restored, _ = model(signal(PICTURE))
    settle(model)
    assert model.quantizer.centres.tolist() == [-5, -1, 0, 3, 7]
    again = model.decode(model.encode(signal(PICTURE)))
    torch.testing.assert_close(again, restored, atol=1e-5, rtol=1e-5)


def test_attention_starts_as_the_identity_and_then_looks_everywhere() -> None:
    attention = made(PICTURE).decoder[1]
    x = torch.randn(2, 16, 8, 12)
    assert torch.equal(attention(x), x)
    with torch.no_grad():
        attention.gamma.fill_(1.0)  # type: ignore[operator]
        before = attention(x)
        x[0, :, 0, 0] += 3
        change = (attention(x) - before).abs().sum(1)
    assert float(change[0].min()) > 0
    assert float(change[1].max()) == 0


def test_the_rate_is_the_entropy_where_the_choice_is_clear() -> None:
    symbols = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]]).repeat(1, 1000)[None]
    shares = torch.nn.functional.one_hot(symbols, 4).float()
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) / 2
    assert float(rate(shares, symbols)) == pytest.approx(entropy, abs=0.01)


def test_all_rates_are_one_model_on_disk(tmp_path: Path) -> None:
    config = RatesConfig(
        tuple({"size": [32, 32], "channels": c, "widths": [8, 8, 8], "levels": 4} for c in (2, 4))
    )
    rates = Rates(config)
    save_weights(rates, tmp_path / "deepcod.safetensors")
    loaded = load_model(tmp_path / "deepcod.safetensors", "deepcod", {"rates": config.rates})
    assert isinstance(loaded, Rates)
    assert [loaded.codec(number).config.channels for number in (1, 2)] == [2, 4]
    x = torch.rand(2, 3, 32, 32)
    for number in (1, 2):
        same = loaded.codec(number).encode(x) == rates.codec(number).encode(x)
        assert float(same.float().mean()) > 0.99


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (30, 32)},
        {"size": (4, 4, 4)},
        {"levels": 1},
        {"channels": 49},
        {"widths": (8,)},
        {"kernel": 2},
    ],
)
def test_a_codec_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"size|levels|widths"):
        DeepCODConfig(**{"size": (32, 32), **wrong})  # type: ignore[arg-type]
    rates = ({"size": (32, 32), **wrong},)
    with pytest.raises(ConfigError, match="config"):
        load_model(Path("none.safetensors"), "deepcod", {"rates": rates})


def test_all_layers_of_both_backbones_are_at_hand() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(dim=16, depth=2, heads=2, classes=4, image=64)).eval()
    cnn = Cnn(CnnConfig(4, (8, 8, 16, 16))).eval()
    pictures = torch.rand(2, 3, 64, 64)
    layers = layers_of(vit)(pictures)
    assert len(layers) == 4
    frame = pictures[0].permute(1, 2, 0)
    assert torch.equal(as_patches(pictures, 16)[0, 5].view(16, 16, 3), frame[16:32, 16:32])
    torch.testing.assert_close(layers[-1], vit(as_patches(pictures, 16)).logits)
    layers = layers_of(cnn)(pictures)
    assert [tuple(each.shape[1:]) for each in layers] == [
        (8, 16, 16), (8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2), (4,)
    ]  # fmt: skip
    logits, grid = cnn(pictures)
    assert torch.equal(logits, layers[-1])
    assert torch.equal(grid, layers[3])
    with pytest.raises(TypeError, match="Linear"):
        layers_of(torch.nn.Linear(2, 2))
