"""The counts of multiply-adds against torch's own count of what is executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from server.models import macs
from server.models.light import LightInference, for_classifier
from server.models.mae import MAEConfig, MaskedAutoencoder
from server.models.vit import VisionTransformer, ViTConfig

LINEAR = ViTConfig(dim=24, depth=2, heads=2, classes=5, image=64, mlp_ratio=3.0)
LOCAL = replace(LINEAR, stem="local", stem_width=4, mixers=2)
CONFIGS = pytest.mark.parametrize("config", [LINEAR, LOCAL], ids=["linear", "local"])


def executed(call: Callable[[], object]) -> int:
    """Multiply-adds of `call`: torch counts FLOPs, two for each."""
    # The other kernels of attention are one operation that torch does not count on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


@CONFIGS
def test_a_classification(config: ViTConfig) -> None:
    vit = VisionTransformer(config).eval()
    assert executed(lambda: vit(torch.rand(1, 16, 768))) == macs.classify(config)
    few, places = torch.rand(1, 3, 768), torch.tensor([[3, 1, 9]])
    assert executed(lambda: vit(few, places)) == macs.classify(config, 3)


def test_a_recovery() -> None:
    config = MAEConfig(
        dim=24, depth=1, heads=2, decoder_dim=16, decoder_depth=2, decoder_heads=2, image=64
    )
    mae = MaskedAutoencoder(config).eval()
    places = torch.tensor([[3, 1, 9]])
    assert executed(lambda: mae.recover(torch.rand(1, 3, 768), places)) == macs.recover(config, 3)


@CONFIGS
@pytest.mark.parametrize(
    "change",
    [{}, {"first": False}, {"linear": False}, {"layers": 1, "after": 1}],
    ids=["full", "only-new", "non-linear", "one-attention"],
)
def test_a_light_inference(config: ViTConfig, change: dict[str, bool | int]) -> None:
    shape = replace(for_classifier(config), **change)  # type: ignore[arg-type]
    vit: nn.Module = VisionTransformer(config).eval()
    model = LightInference(shape).eval()
    places = torch.tensor([[4, 0, 11, 5]])
    patches, tokens = torch.rand(1, 4, 768), torch.rand(1, 17, 24)
    count = executed(lambda: model(vit, patches, places, tokens))
    assert count == macs.light(shape, config, 4)
    count = executed(lambda: model(vit, patches, places, tokens[:, :8]))
    assert count == macs.light(shape, config, 4, first=7)
