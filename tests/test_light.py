"""The light inference: exact where it saves, as good as round one to begin with, and loadable."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from server.models.checkpoint import load_model, save_weights
from server.models.light import (
    ClassBlock,
    LightConfig,
    LightInference,
    begin,
    encode,
    for_classifier,
)
from server.models.mae import take
from server.models.vit import Block, VisionTransformer, ViTConfig

LINEAR = ViTConfig(dim=24, depth=4, heads=2, classes=5, image=64)
LOCAL = replace(LINEAR, stem="local", stem_width=4, mixers=2)
PLAIN = for_classifier(LINEAR)
VARIANTS = {
    "full": PLAIN,
    "only-new": replace(PLAIN, first=False),
    "non-linear": replace(PLAIN, linear=False),
    "one-attention": for_classifier(LINEAR, layers=1),
}


def classifier(config: ViTConfig = LINEAR) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model


def frame(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and five places of the sixteen, in no order."""
    return torch.rand(batch, 16, 768), torch.stack([torch.randperm(16)[:5] for _ in range(batch)])


@torch.no_grad()
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("config", [LINEAR, LOCAL], ids=["linear", "local"])
def test_the_encoder_gives_what_the_classifier_would(config: ViTConfig, after: int) -> None:
    vit = classifier(config)
    patches, places = frame()
    few = take(patches, places)
    wanted = begin(vit, vit.embed(few, places), after)
    torch.testing.assert_close(encode(vit, few, places, after), wanted, atol=1e-4, rtol=1e-4)
    # What is left of the classifier goes on from there.
    tokens, attention = vit.forward_features(wanted, after)
    whole = vit(few, places)
    torch.testing.assert_close(vit.forward_head(tokens), whole.logits)
    torch.testing.assert_close(attention, whole.attention)


@torch.no_grad()
def test_the_last_layer_gives_the_class_token_of_a_whole_layer() -> None:
    torch.manual_seed(0)
    whole, part = Block(24, 2, 4.0, 1e-6), ClassBlock(24, 2, 4.0, 1e-6)
    part.load_state_dict(whole.state_dict())
    x = torch.randn(3, 17, 24)
    torch.testing.assert_close(part(x), whole(x)[:, :1])


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3, 5])
@pytest.mark.parametrize("linear", [True, False])
def test_it_starts_as_the_classifier_on_the_sum_of_both_rounds(layers: int, linear: bool) -> None:
    vit = classifier()
    patches, places = frame()
    config = replace(for_classifier(vit.config, layers), linear=linear)
    assert config.after == {1: 3, 3: 1, 5: 0}[layers]  # 5: more than the classifier's four
    tokens = begin(vit, vit.embed(patches), config.after)
    few = take(patches, places)
    model = LightInference(config).eval()
    model.start_from(vit)
    new = encode(vit, few, places, config.after)
    both = tokens.clone()
    both[:, 0] += new[:, 0]
    for row, asked in enumerate(places):
        both[row, 1 + asked] += new[row, 1:]
    last, _ = vit.forward_features(both, config.after)
    torch.testing.assert_close(
        model(vit, few, places, tokens), vit.forward_head(last), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_uses_what_it_says(name: str) -> None:
    config = VARIANTS[name]
    vit, model = classifier(), LightInference(config).eval()
    patches, places = frame()
    tokens = begin(vit, vit.embed(patches), config.after)
    few = take(patches, places)
    logits = model(vit, few, places, tokens)
    assert logits.shape == (2, 5)
    assert not torch.allclose(model(vit, 1 - few, places, tokens), logits)
    assert torch.allclose(model(vit, few, places, -tokens), logits) == (not config.first)
    assert len(model.blocks) == config.layers
    assert hasattr(model, "new") == config.linear


@torch.no_grad()
def test_new_tokens_are_added_at_their_places() -> None:
    vit = classifier()
    model = LightInference(PLAIN).eval()
    model.start_from(vit)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    first = torch.randn(1, 17, 24)
    new = torch.randn(1, 3, 24)
    model.decode(new, torch.tensor([[7, 0]]), first)
    expected = first.clone()
    for row, place in enumerate((0, 8, 1)):
        expected[0, place] += new[0, row]
    torch.testing.assert_close(seen[0], expected)


@torch.no_grad()
def test_beside_tokens_of_other_patches_new_ones_stand_alone() -> None:
    vit, model = classifier(), LightInference(PLAIN)
    model.start_from(vit)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    patches, places = frame()
    few = take(patches, places)
    new, first = encode(vit, few, places, PLAIN.after), torch.randn(2, 8, 24)
    model(vit, few, places, first)
    assert seen[0].shape == (2, 8 + 5, 24)
    torch.testing.assert_close(seen[0][:, 0], first[:, 0] + new[:, 0])
    torch.testing.assert_close(seen[0][:, 1:8], first[:, 1:])
    torch.testing.assert_close(seen[0][:, 8:], new[:, 1:])


@pytest.mark.parametrize("name", VARIANTS)
def test_its_weights_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model = LightInference(config)
    model.start_from(classifier())
    save_weights(model, tmp_path / "light.safetensors")
    loaded = load_model(tmp_path / "light.safetensors", "light", asdict(config))
    assert isinstance(loaded, LightInference)
    assert loaded.config == config
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, atol=1e-3, rtol=1e-3)


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        LightConfig(dim=10, heads=3, classes=2, after=0)
    with pytest.raises(ValueError, match="layers"):
        LightConfig(dim=10, heads=2, classes=2, after=0, layers=0)
