"""Published shapes: as large as published, timm's names, served with a checkpoint's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common import profile as profiles_of
from device.bundle import Bundle
from device.strategies import janus
from device.strategy import Frame, Plan
from profiles import untrained
from profiles.train.patchwork import to_patches
from server.models.checkpoint import load_model
from server.models.vit import VisionTransformer
from server.serving import Serving

PUBLISHED = {"vit-base": 86_567_656, "vit-large-384": 304_715_752}
"""Parameters that timm counts in vit_base_patch16_224 and vit_large_patch16_384."""


def small(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """`shape`, made small enough to test."""
    config = replace(untrained.SHAPES[shape], dim=16, depth=2, heads=2, image=32, classes=4)
    monkeypatch.setitem(untrained.SHAPES, shape, config)


@pytest.mark.parametrize("shape", sorted(untrained.SHAPES))
def test_the_shapes_are_the_published_ones(shape: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(untrained.SHAPES[shape])
    if shape in PUBLISHED:
        assert sum(p.numel() for p in model.parameters()) == PUBLISHED[shape]
    names = {name.split(".", 2)[2] for name in model.state_dict() if name.startswith("blocks.0.")}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("shape", sorted(untrained.SHAPES))
def test_a_profile_of_it_answers_alike_wherever_it_is_split(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, shape)
    profile = profiles_of.load(untrained.make(shape, tmp_path / shape))
    present = {file.path for file in profile.manifest.files}
    device = janus.create(Bundle(profile.manifest, profile.directory, present))
    size = profile.manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (size.height, 32, 3), dtype=np.uint8)
    content = pixels if size.height == 32 else pixels.reshape(-1, 32, 32, 3)
    with pytest.raises(StopIteration) as stop:
        next(device.infer(Frame(0, "0", content, 0.0), Plan("janus", {"split": 3})))
    logits = Serving(profile).classifier(to_patches(pixels[None])).logits
    best = int(logits.argmax())
    assert stop.value.value.label == str(best)
    assert stop.value.value.prob == pytest.approx(float(logits.softmax(-1)[0, best]), abs=1e-4)


def test_a_public_checkpoint_takes_the_place_of_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patch embedding is a convolution's, as timm writes it."""
    small(monkeypatch, "vit-base")
    config = untrained.SHAPES["vit-base"]
    torch.manual_seed(5)
    state = VisionTransformer(replace(config, classes=2)).state_dict()
    matrix = state["patch_embed.proj.weight"]
    kernel = matrix.view(16, 16, 16, 3).permute(0, 3, 1, 2).contiguous()
    save_file({**state, "patch_embed.proj.weight": kernel}, tmp_path / "timm.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    untrained.main(
        ["vit-base", str(tmp_path / "mine"), "--checkpoint", str(tmp_path / "timm.safetensors"),
         "--classes", str(tmp_path / "names.txt")]
    )  # fmt: skip
    profile = profiles_of.load(tmp_path / "mine")
    assert profile.manifest.classes == ("cat", "dog")
    loaded = Serving(profile).classifier.patch_embed.state_dict()["proj.weight"]
    torch.testing.assert_close(loaded, matrix, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_over_clips_has_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of Feichtenhofer et al.'s published code (mae_st), from its own parts."""
    small(monkeypatch, "vit-large-clips")
    config = untrained.SHAPES["vit-large-clips"]
    torch.manual_seed(6)
    vit = VisionTransformer(config).eval()
    for value in vit.parameters():
        value.data.normal_(std=0.2)
    state = vit.state_dict()
    theirs = {k: v for k, v in state.items() if ".qkv." not in k and not k.startswith("fc_norm")}
    for name in [key for key in state if ".qkv." in key]:
        for word, part in zip("qkv", state[name].chunk(3), strict=True):
            theirs[name.replace(".qkv.", f".{word}.")] = part.contiguous()
    theirs |= {k.removeprefix("fc_"): v for k, v in state.items() if k.startswith("fc_norm")}
    space, time = torch.randn(1, 4, 16), torch.randn(1, 8, 16)
    del theirs["pos_embed"]
    theirs |= {"pos_embed_spatial": space, "pos_embed_temporal": time}
    theirs["pos_embed_class"] = torch.randn(1, 1, 16)
    kernel = state["patch_embed.proj.weight"].view(16, 16, 16, 2, 3).permute(0, 4, 3, 1, 2)
    theirs["patch_embed.proj.weight"] = kernel.contiguous()
    torch.save({"model": theirs}, tmp_path / "st.pth")
    loaded = load_model(tmp_path / "st.pth", "vit", config)
    assert isinstance(loaded, VisionTransformer)
    # As models_vit.py adds them: space repeated, time interleaved.
    both = space.repeat(1, 8, 1) + time.repeat_interleave(4, dim=1)
    torch.testing.assert_close(loaded.pos_embed[:, 1:].detach(), both)
    vit.pos_embed.data = loaded.pos_embed.data
    patches = torch.rand(2, 64, 768)
    with torch.no_grad():
        torch.testing.assert_close(loaded(patches).logits, vit(patches).logits)


def test_a_checkpoint_of_another_shape_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, "vit-base")
    save_file({"cls_token": torch.zeros(1, 1, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit):
        untrained.main(
            ["vit-base", str(tmp_path / "x"), "--checkpoint", str(tmp_path / "other.safetensors")]
        )
    assert "does not fit" in capsys.readouterr().err
