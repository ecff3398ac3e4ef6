"""The text model: published checkpoints by their true names, exits, padding that changes none."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from common.errors import ConfigError
from server.models.bert import Bert, BertConfig
from server.models.checkpoint import load_model, save_weights

PUBLISHED = BertConfig(vocabulary=40, dim=24, depth=3, heads=4, hidden=48, positions=16)
SMALL = BertConfig(
    vocabulary=40, dim=24, depth=3, heads=4, hidden=48, positions=16, types=1, classes=3,
    exits=(1, 2), pool="mean",
)  # fmt: skip
IDS = torch.tensor([[2, 9, 17, 4, 3], [2, 30, 5, 6, 3]])


def published(config: BertConfig, classifier: bool = True) -> dict[str, Tensor]:
    """A random checkpoint with the names that transformers' files have."""
    torch.manual_seed(0)
    d, h = config.dim, config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (config.vocabulary, d),
        "bert.embeddings.position_embeddings.weight": (config.positions, d),
        "bert.embeddings.token_type_embeddings.weight": (config.types, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
        "bert.pooler.dense.weight": (d, d),
        "bert.pooler.dense.bias": (d,),
    }
    for layer in range(config.depth):
        at = f"bert.encoder.layer.{layer}"
        for name, (outputs, inputs) in {
            "attention.self.query": (d, d), "attention.self.key": (d, d),
            "attention.self.value": (d, d), "attention.output.dense": (d, d),
            "intermediate.dense": (h, d), "output.dense": (d, h),
        }.items():  # fmt: skip
            shapes |= {f"{at}.{name}.weight": (outputs, inputs), f"{at}.{name}.bias": (outputs,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (d,), f"{at}.{name}.bias": (d,)}
    if classifier:
        shapes |= {"classifier.weight": (config.classes, d), "classifier.bias": (config.classes,)}
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def reference(w: dict[str, Tensor], ids: Tensor, config: BertConfig) -> Tensor:
    """BERT for classification, written out from its paper on the published tensors."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    n = ids.shape[1]
    x = w["bert.embeddings.word_embeddings.weight"][ids]
    x = x + w["bert.embeddings.position_embeddings.weight"][:n]
    x = norm(x + w["bert.embeddings.token_type_embeddings.weight"][0], "bert.embeddings.LayerNorm")
    size = config.dim // config.heads
    for layer in range(config.depth):
        at = f"bert.encoder.layer.{layer}"
        heads = []
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            heads.append(scores.softmax(-1) @ v[..., part])
        y = linear(torch.cat(heads, -1), f"{at}.attention.output.dense")
        x = norm(x + y, f"{at}.attention.output.LayerNorm")
        y = linear(x, f"{at}.intermediate.dense")
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        x = norm(x + linear(y, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return linear(torch.tanh(linear(x[:, 0], "bert.pooler.dense")), "classifier")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_published_classifier_loads_and_computes_as_published(
    tmp_path: Path, suffix: str
) -> None:
    weights = published(PUBLISHED)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    model = load_model(path, "bert", asdict(PUBLISHED))
    assert isinstance(model, Bert)
    (logits,) = model(IDS)
    torch.testing.assert_close(logits, reference(weights, IDS, PUBLISHED), atol=1e-4, rtol=1e-4)


def test_a_pretrained_encoder_loads_without_its_heads(tmp_path: Path) -> None:
    """As bert-base-uncased was published: old names of norms, heads of pretraining."""
    weights = published(PUBLISHED, classifier=False)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    old["cls.predictions.bias"] = torch.zeros(40)
    old["cls.seq_relationship.weight"] = torch.zeros(2, 24)
    old["bert.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(old, tmp_path / "base.safetensors")
    model = load_model(tmp_path / "base.safetensors", "bert", replace(PUBLISHED, classes=0))
    assert isinstance(model, Bert)
    got = model.run(model.embeddings(IDS), 0, 3)
    full = Bert(PUBLISHED).eval()
    full.load_state_dict(
        {name.removeprefix("bert."): value for name, value in published(PUBLISHED).items()}
    )
    torch.testing.assert_close(got, full.run(full.embeddings(IDS), 0, 3))


@pytest.mark.parametrize(("size", "parameters"), [("base", 109_483_778), ("large", 335_143_938)])
def test_the_published_sizes_are_the_published_ones(size: str, parameters: int) -> None:
    config = BertConfig() if size == "base" else BertConfig(dim=1024, depth=24, heads=16,
                                                            hidden=4096)  # fmt: skip
    with torch.device("meta"):
        model = Bert(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(published(PUBLISHED, classifier=False), path)
    with pytest.raises(ConfigError, match=r"missing: classifier\.bias, classifier\.weight"):
        load_model(path, "bert", PUBLISHED)
    with pytest.raises(ConfigError, match=r"of another shape: .*word_embeddings"):
        load_model(path, "bert", replace(PUBLISHED, classes=0, vocabulary=41))
    for wrong in ({"heads": 5}, {"exits": (3,)}, {"pool": "max"}):
        with pytest.raises(ConfigError, match="config: "):
            load_model(path, "bert", asdict(PUBLISHED) | wrong)


def test_our_own_weights_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Bert(SMALL).eval().half().float()
    save_weights(model, tmp_path / "bert.safetensors")
    again = load_model(tmp_path / "bert.safetensors", "bert", asdict(SMALL))
    for one, other in zip(model(IDS), again(IDS), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_exit_answers_and_padding_changes_nothing(pool: str) -> None:
    torch.manual_seed(2)
    model = Bert(replace(SMALL, pool=pool)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    alone = model(IDS)
    assert [tuple(each.shape) for each in alone] == [(2, 3)] * 3
    longer = F.pad(IDS, (0, 4))
    together = model(longer, (longer != 0)[:, None, None, :])
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(longer)[-1], alone[-1])  # the mask is what does it


def test_layer_by_layer_is_the_whole() -> None:
    torch.manual_seed(3)
    model = Bert(SMALL).eval()
    x = model.embeddings(IDS)
    for place, logits in enumerate(model(IDS), start=1):
        x = model.run(x, place - 1, place)
        torch.testing.assert_close(model.classify(x, place), logits)
