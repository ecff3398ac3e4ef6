"""Loading public checkpoints by their true key names, from small random files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ConfigError
from server.models.checkpoint import load_model, resample_positions, save_weights
from server.models.mae import MAEConfig, MaskedAutoencoder, positions
from server.models.vit import VisionTransformer, ViTConfig, ViTOutput

D = 8
VIT = ViTConfig(dim=D, depth=2, heads=2, classes=3, image=64)
MAE = MAEConfig(dim=D, depth=2, heads=2, decoder_dim=4, decoder_depth=1, decoder_heads=1, image=64)


def timm_block(prefix: str, d: int) -> dict[str, Tensor]:
    return {
        f"{prefix}.norm1.weight": torch.rand(d),
        f"{prefix}.norm1.bias": torch.rand(d),
        f"{prefix}.attn.qkv.weight": torch.randn(3 * d, d),
        f"{prefix}.attn.qkv.bias": torch.randn(3 * d),
        f"{prefix}.attn.proj.weight": torch.randn(d, d),
        f"{prefix}.attn.proj.bias": torch.randn(d),
        f"{prefix}.norm2.weight": torch.rand(d),
        f"{prefix}.norm2.bias": torch.rand(d),
        f"{prefix}.mlp.fc1.weight": torch.randn(4 * d, d),
        f"{prefix}.mlp.fc1.bias": torch.randn(4 * d),
        f"{prefix}.mlp.fc2.weight": torch.randn(d, 4 * d),
        f"{prefix}.mlp.fc2.bias": torch.randn(d),
    }


def timm_trunk(grid: int = 4) -> dict[str, Tensor]:
    state = {
        "cls_token": torch.randn(1, 1, D),
        "pos_embed": torch.randn(1, 1 + grid * grid, D),
        "patch_embed.proj.weight": torch.randn(D, 3, 16, 16),
        "patch_embed.proj.bias": torch.randn(D),
        "norm.weight": torch.rand(D),
        "norm.bias": torch.rand(D),
    }
    for i in range(2):
        state |= timm_block(f"blocks.{i}", D)
    return state


def timm_vit(grid: int = 4) -> dict[str, Tensor]:
    return timm_trunk(grid) | {"head.weight": torch.randn(3, D), "head.bias": torch.randn(3)}


def official_mae() -> dict[str, Tensor]:
    return (
        timm_trunk()
        | timm_block("decoder_blocks.0", 4)
        | {
            "pos_embed": positions(D, 4),
            "mask_token": torch.randn(1, 1, 4),
            "decoder_pos_embed": positions(4, 4),
            "decoder_embed.weight": torch.randn(4, D),
            "decoder_embed.bias": torch.randn(4),
            "decoder_norm.weight": torch.rand(4),
            "decoder_norm.bias": torch.rand(4),
            "decoder_pred.weight": torch.randn(768, 4),
            "decoder_pred.bias": torch.randn(768),
        }
    )


def transformers_layer(timm: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """One layer under the names of transformers' files."""
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    out = {}
    for kind in ("weight", "bias"):
        for ours, theirs in names.items():
            out[f"{new}.{theirs}.{kind}"] = timm[f"{old}.{ours}.{kind}"]
        parts = timm[f"{old}.attn.qkv.{kind}"].chunk(3)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            out[f"{new}.attention.attention.{name}.{kind}"] = part.clone()
    return out


def transformers_trunk(timm: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    state = {
        f"{root}embeddings.cls_token": timm["cls_token"],
        f"{root}embeddings.position_embeddings": timm["pos_embed"],
        f"{root}embeddings.patch_embeddings.projection.weight": timm["patch_embed.proj.weight"],
        f"{root}embeddings.patch_embeddings.projection.bias": timm["patch_embed.proj.bias"],
        f"{root}layernorm.weight": timm["norm.weight"],
        f"{root}layernorm.bias": timm["norm.bias"],
    }
    for i in range(2):
        state |= transformers_layer(timm, f"blocks.{i}", f"{root}encoder.layer.{i}")
    return state


def transformers_mae(timm: dict[str, Tensor]) -> dict[str, Tensor]:
    state = transformers_trunk(timm, "vit.")
    for name in ("mask_token", "decoder_pos_embed"):
        state[f"decoder.{name}"] = timm[name]
    for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
        for kind in ("weight", "bias"):
            state[f"decoder.{name}.{kind}"] = timm[f"{name}.{kind}"]
    return state | transformers_layer(timm, "decoder_blocks.0", "decoder.decoder_layers.0")


@torch.no_grad()
def recovery(model: torch.nn.Module) -> Tensor:
    assert isinstance(model, MaskedAutoencoder)
    torch.manual_seed(1)
    return model.recover(torch.rand(1, 4, 768), torch.tensor([[0, 5, 6, 15]]))


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    assert isinstance(model, VisionTransformer)
    torch.manual_seed(1)
    out: ViTOutput = model(torch.rand(1, 16, 768))
    return out.logits


@torch.no_grad()
def test_a_timm_vit_embeds_as_its_convolution_does(tmp_path: Path) -> None:
    state = timm_vit()
    path = tmp_path / "vit.safetensors"
    save_file(state, path)
    model = load_model(path, "vit", VIT)
    assert isinstance(model, VisionTransformer)
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIT.mean, VIT.std))
    conv = torch.nn.functional.conv2d(
        (image - mean) / std,
        state["patch_embed.proj.weight"],
        state["patch_embed.proj.bias"],
        stride=16,
    )
    expected = conv.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    patches = image.view(1, 3, 4, 16, 4, 16).permute(0, 2, 4, 3, 5, 1).reshape(1, 16, 768)
    torch.testing.assert_close(model.embed(patches)[:, 1:], expected, atol=1e-3, rtol=1e-4)


def test_one_model_under_three_names_answers_alike(tmp_path: Path) -> None:
    state = official_mae()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "official.pth")
    save_file(transformers_mae(state), tmp_path / "transformers.safetensors")
    torch.save(transformers_mae(state), tmp_path / "transformers.pth")
    plain = recovery(load_model(tmp_path / "plain.safetensors", "mae", MAE))
    for name in ("official.pth", "transformers.safetensors", "transformers.pth"):
        torch.testing.assert_close(recovery(load_model(tmp_path / name, "mae", MAE)), plain)


def test_a_transformers_vit_answers_like_timms(tmp_path: Path) -> None:
    state = timm_vit()
    save_file(state, tmp_path / "timm.safetensors")
    theirs = transformers_trunk(state, "vit.")
    theirs |= {"classifier.weight": state["head.weight"], "classifier.bias": state["head.bias"]}
    save_file({k: v.clone() for k, v in theirs.items()}, tmp_path / "hf.safetensors")
    timm = logits(load_model(tmp_path / "timm.safetensors", "vit", VIT))
    hf = logits(load_model(tmp_path / "hf.safetensors", "vit", VIT))
    torch.testing.assert_close(hf, timm)


def test_a_finetuned_mae_pools_the_patches(tmp_path: Path) -> None:
    state = timm_vit()
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"norm.{kind}")
    torch.save({"model": state}, tmp_path / "tuned.pth")
    config = {"dim": D, "depth": 2, "heads": 2, "classes": 3, "image": 64, "pool": "avg"}
    assert logits(load_model(tmp_path / "tuned.pth", "vit", config)).shape == (1, 3)


@torch.no_grad()
def test_positions_are_resampled_for_another_frame_size(tmp_path: Path) -> None:
    save_file(timm_vit(grid=14), tmp_path / "vit.safetensors")
    config = ViTConfig(dim=D, depth=2, heads=2, classes=3, image=384)
    model = load_model(tmp_path / "vit.safetensors", "vit", config)
    assert isinstance(model, VisionTransformer)
    assert model.pos_embed.shape == (1, 1 + 24 * 24, D)
    ramp = torch.linspace(0, 1, 14).repeat(14).view(1, 196, 1)
    table = resample_positions(torch.cat((torch.full((1, 1, 1), 9.0), ramp), 1), 24)
    assert table[0, 0, 0] == 9.0
    row = table[0, 1 : 1 + 24, 0]
    assert (row.diff() >= -1e-4).all()
    assert abs(float(row[12]) - 0.52) < 0.02


@torch.no_grad()
def test_our_own_weights_come_back_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        dim=D, depth=1, heads=2, classes=3, image=64, stem="local", stem_width=4, mixers=1
    )
    model = VisionTransformer(config).eval()
    save_weights(model, tmp_path / "vit.safetensors")
    loaded = load_model(tmp_path / "vit.safetensors", "vit", config)
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-3, rtol=1e-2)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = timm_vit()
    del state["blocks.1.mlp.fc2.bias"]
    state["blocks.2.norm1.weight"] = torch.rand(D)
    state["head.weight"] = torch.rand(7, D)
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path / "vit.safetensors", "vit", VIT)
    text = str(caught.value)
    for part in (
        "missing: blocks.1.mlp.fc2.bias",
        "unexpected: blocks.2.norm1.weight",
        "head.weight (7, 8), not (3, 8)",
    ):
        assert part in text


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled!",)


def test_nothing_is_unpickled_and_garbage_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "garbage.pth").write_bytes(b"no checkpoint")
    (tmp_path / "garbage.safetensors").write_bytes(b"no checkpoint")
    for name in ("trap.pth", "garbage.pth", "garbage.safetensors", "missing.safetensors"):
        with pytest.raises(ConfigError, match=name):
            load_model(tmp_path / name, "vit", VIT)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="unknown kind"):
        load_model(tmp_path / "garbage.pth", "oracle", VIT)
