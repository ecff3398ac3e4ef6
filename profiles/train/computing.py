"""The stages of the baselines that compute on the device: PO, DF and MBC.

Each builds on the published profile's classifier and adds what it makes to the profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import profile
from profiles.amend import amend
from profiles.export import filter_onnx
from profiles.export_split import mbc_onnx, po_onnx, rows_onnx
from profiles.train import bottleneck, filter, publish
from profiles.train.bottleneck import U8, Frames
from profiles.train.filter import Batches, Marked
from profiles.train.job import Job
from profiles.train.photos import Photos
from server.models.bottleneck import Bottleneck, BottleneckConfig
from server.models.checkpoint import load_model, save_weights
from server.models.vit import VisionTransformer

SQUEEZE, FILTER = "device/mbc.onnx", "device/df.onnx"
MIXERS = 1
"""Layers of MBC's decoder."""


def po(job: Job, name: str) -> None:
    """PO: the embedding and the first block for the device. Nothing is trained."""
    vit, weights = classifier(name)
    (embed, embed_macs), (block, block_macs) = rows_onnx(vit, weights), po_onnx(vit, weights)
    handed = {_place(path): path for path in (weights, embed, block)}
    params = dict(zip(("weights", "embed", "block"), handed, strict=True))
    params |= {"precision": "int8", "codec": "zstd"}
    _add(job, name, "po", {**params, "device_macs": embed_macs + block_macs}, handed)


def df(
    job: Job, name: str, batches: Batches, samples: int, held: Marked, params: Mapping[str, Any]
) -> None:
    """DF: a filter trained on ``batches`` of ``samples`` frames and measured on ``held``.

    ``params`` are its settings.
    """
    model, seconds = filter.train(
        batches, samples, job.checkpoint("df"), job.minutes(8), job.seed, job.resume
    )
    macs = filter_onnx(model, job.out / "df.onnx")
    job.record("df", seconds, overlap=filter.overlap(model, held))
    params = {"filter": FILTER, **params, "device_macs": macs}
    _add(job, name, "df", params, {FILTER: job.out / "df.onnx"})


def mbc(
    job: Job, name: str, channels: int, levels: int, frames: Frames, first: U8, samples: int,
    held: Photos,
) -> None:  # fmt: skip
    """MBC: a bottleneck of that shape for the classifier, measured on ``held``.

    ``frames``, ``first`` and ``samples`` as in ``bottleneck.train``.
    """
    vit, weights = classifier(name)
    config = BottleneckConfig(vit.config.dim, channels, levels, MIXERS, vit.config.grid)
    model, seconds = bottleneck.train(
        config, vit, frames, first, samples, job.checkpoint("mbc"), job.minutes(9), job.seed,
        job.resume,
    )  # fmt: skip
    save_weights(model, job.weights("mbc"))
    served = load_model(job.weights("mbc"), "bottleneck", asdict(config))
    assert isinstance(served, Bottleneck)
    job.record("mbc", seconds, **bottleneck.accuracy(served, vit, held))
    embed, macs = rows_onnx(vit, weights)
    macs += mbc_onnx(served, job.out / "mbc.onnx")
    handed = {_place(weights): weights, _place(embed): embed, SQUEEZE: job.out / "mbc.onnx"}
    params = dict(zip(("weights", "embed", "squeeze"), handed, strict=True))
    models = {"bottleneck": (job.weights("mbc"), asdict(config))}
    _add(job, name, "mbc", {**params, "codec": "zstd", "device_macs": macs}, handed, models)


def classifier(name: str) -> tuple[VisionTransformer, Path]:
    """The classifier of the published profile ``name``, and its file."""
    entry = profile.load(publish.PROFILES / name).models["vit"]
    vit = load_model(entry.file, entry.kind, entry.config)
    assert isinstance(vit, VisionTransformer)
    return vit.requires_grad_(False), entry.file


def _place(path: Path) -> str:
    """Of a file beside a profile's weights, its path in the profile."""
    return f"{path.parent.name}/{path.name}"


def _add(
    job: Job, name: str, strategy: str, params: Mapping[str, Any], files: Mapping[str, Path],
    models: Mapping[str, tuple[Path, Mapping[str, Any]]] | None = None,
) -> None:  # fmt: skip
    made = job.recorded(strategy)
    amend(
        publish.PROFILES / name, models=models, strategies={strategy: params},
        files=files,
        made={strategy: made} if made else {},
    )  # fmt: skip
