"""The ViT and the masked autoencoder: shapes, subsets, attention, recovery."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from server.models.mae import MAEConfig, MaskedAutoencoder, positions, take
from server.models.vit import VisionTransformer, ViTConfig, from_mapping

LINEAR = ViTConfig(dim=24, depth=2, heads=2, classes=5, image=64)
LOCAL = ViTConfig(
    dim=24, depth=2, heads=2, classes=5, image=64, stem="local", stem_width=4, mixers=1
)
SMALL_MAE = MAEConfig(
    dim=24, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2, image=64
)


def vit(config: ViTConfig) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture(params=[LINEAR, LOCAL], ids=["linear", "local"])
def model(request: pytest.FixtureRequest) -> VisionTransformer:
    return vit(request.param)


@torch.no_grad()
def test_a_frame_gives_logits_and_one_attention_per_patch(model: VisionTransformer) -> None:
    out = model(torch.rand(3, 16, 768))
    assert out.logits.shape == (3, 5)
    assert out.attention.shape == (3, 16)
    assert (out.attention > 0).all()
    assert (out.attention.sum(1) < 1).all()


@torch.no_grad()
def test_the_order_of_the_patches_is_told_by_their_places(model: VisionTransformer) -> None:
    patches = torch.rand(2, 16, 768)
    whole = model(patches)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    mixed = model(take(patches, order), order)
    torch.testing.assert_close(mixed.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        mixed.attention, whole.attention.gather(1, order), atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_a_subset_differs_from_the_frame_and_from_other_places(model: VisionTransformer) -> None:
    patches = torch.rand(1, 4, 768)
    here = model(patches, torch.tensor([[0, 1, 2, 3]])).logits
    there = model(patches, torch.tensor([[12, 13, 14, 15]])).logits
    assert here.shape == (1, 5)
    assert (here - there).abs().max() > 1e-5


@torch.no_grad()
def test_without_mixers_a_patch_is_embedded_alone() -> None:
    config = ViTConfig(
        dim=24, depth=1, heads=2, classes=5, image=64, stem="local", stem_width=4, mixers=0
    )
    model = vit(config)
    patches = torch.rand(1, 16, 768)
    alone = model.embed(patches[:, 7:8], torch.tensor([[7]]))
    torch.testing.assert_close(alone[:, 1], model.embed(patches)[:, 8])


@torch.no_grad()
def test_the_attention_is_the_softmax_row_of_the_class_token(model: VisionTransformer) -> None:
    tokens = model.embed(torch.rand(2, 16, 768))
    last = model.blocks[-1]
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    q, k, _ = last.attn.split(last.norm1(tokens))  # type: ignore[operator]
    full = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(12), dim=-1).mean(1)
    _, row = last.forward_with_row(tokens)  # type: ignore[operator]
    torch.testing.assert_close(row, full[:, 0])


@torch.no_grad()
def test_the_cut_points_make_up_the_whole(model: VisionTransformer) -> None:
    patches = torch.rand(1, 16, 768)
    tokens, attention = model.forward_features(model.embed(patches))
    out = model(patches)
    torch.testing.assert_close(model.forward_head(tokens), out.logits)
    torch.testing.assert_close(attention, out.attention)


@torch.no_grad()
def test_average_pooling_reads_the_patch_tokens() -> None:
    model = vit(ViTConfig(dim=24, depth=1, heads=2, classes=5, image=64, pool="avg"))
    tokens = torch.randn(1, 17, 24)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert torch.equal(model.forward_head(tokens), model.forward_head(changed))


def test_a_config_is_checked() -> None:
    assert from_mapping(ViTConfig, {"dim": 24, "depth": 1, "heads": 2, "classes": 5}) == ViTConfig(
        dim=24, depth=1, heads=2, classes=5
    )
    with pytest.raises(ValueError, match="no deepth"):
        from_mapping(ViTConfig, {"dim": 24, "deepth": 1})
    with pytest.raises(ValueError, match="multiple"):
        ViTConfig(dim=25, depth=1, heads=2, classes=5)
    with pytest.raises(ValueError, match="multiple"):
        MAEConfig(dim=24, depth=1, heads=5, decoder_dim=16, decoder_depth=1, decoder_heads=2)


@torch.no_grad()
def test_received_patches_come_back_exactly() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL_MAE).eval()
    for count in (1, 5, 16):
        indices = torch.rand(3, 16).argsort(1)[:, :count]
        visible = torch.rand(3, count, 768)
        out = model.recover(visible, indices)
        assert out.shape == (3, 16, 768)
        assert torch.equal(take(out, indices), visible)
        assert out.min() >= 0
        assert out.max() <= 1


@torch.no_grad()
def test_the_order_of_visible_patches_does_not_matter() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL_MAE).eval()
    indices = torch.tensor([[3, 9, 11]])
    visible = torch.rand(1, 3, 768)
    torch.testing.assert_close(
        model.recover(visible, indices), model.recover(visible.flip(1), indices.flip(1))
    )


def test_the_autoencoder_learns_what_it_cannot_see() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL_MAE)
    plain = torch.rand(16, 1, 3).repeat(1, 16, 256)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model(plain, 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_positions_follow_the_official_order() -> None:
    table = positions(8, 3)[0]
    assert table.shape == (10, 8)
    assert torch.equal(table[0], torch.zeros(8))
    # Row 1, column 2: the column in the first half, sines before cosines, base 10000.
    expected = [f(2 / b) for f in (math.sin, math.cos) for b in (1, 100)]
    expected += [f(1 / b) for f in (math.sin, math.cos) for b in (1, 100)]
    torch.testing.assert_close(table[1 + 3 + 2], torch.tensor(expected))
