"""What merging and coarser tokens cost a classifier in accuracy, in torch alone.

    python -m profiles.merged imagenette --data imagenette.tar
    python -m profiles.merged imagenette --data imagenette.tar --transport

The first is the whole model with merging, off the shelf: Janus's schedule over alpha, the linear
one and ToMe's fixed r, side by side at the tokens they leave. The second is every split with tokens
sent as int8 and as fp16, next to exact ones: right answers, and answers that changed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import merging as schedules
from common.codec import decode
from common.merging import Merges
from common.profile import load
from common.tokens import pack, restore
from profiles.train import photos
from profiles.train.patchwork import to_patches
from server.models import merging
from server.models.vit import VisionTransformer
from server.serving import Serving

ALPHAS = 12
"""About so many alphas of the grid are tried."""
BATCH = 25
Tokens = tuple[Tensor, Tensor]


def settings(layers: int, tokens: int) -> dict[str, Merges]:
    """The schedules to compare, by what they are called."""
    alphas = schedules.grid(layers, tokens)
    step = max(1, -(-len(alphas) // ALPHAS))
    named: dict[str, Merges] = {}
    for alpha in (*alphas[::step], alphas[-1]):
        merges = schedules.schedule(alpha, layers, tokens)
        if merges not in named.values():
            named[f"alpha {alpha:g}"] = merges
    most = schedules.mergeable(tokens)
    for r in np.unique(np.geomspace(2, most / 2, 8).round().astype(int)):
        named[f"fixed r {r}"] = schedules.fixed(int(r), layers, tokens)
    for slope in np.geomspace(1, most / (layers - 1), 6):
        named[f"linear {slope:.1f}"] = schedules.linear(float(slope), layers, tokens)
    return named


def schedules_table(vit: VisionTransformer, data: photos.Photos) -> str:
    """Accuracy of every schedule."""
    layers, tokens = len(vit.blocks), vit.pos_embed.shape[1]
    named, right = settings(layers, tokens), Counter[str]()
    for start, labels in _batches(vit, data):
        for name, merges in named.items():
            right[name] += _right(vit, merging.run(vit.blocks, *start, merges), labels)
    lines = [
        "| schedule | merges | tokens left | mean tokens | accuracy |",
        "|---|---|---:|---:|---:|",
    ]
    for name, merges in named.items():
        left = schedules.remaining(merges, tokens)
        lines.append(
            f"| {name} | {' '.join(map(str, merges))} | {left[-1]} | {np.mean(left[:-1]):.0f} "
            f"| {right[name] / len(data):.2%} |"
        )
    return "\n".join(lines)


def transport_table(vit: VisionTransformer, data: photos.Photos, alphas: list[float]) -> str:
    """Accuracy of every split and precision, against exact tokens."""
    layers, tokens = len(vit.blocks), vit.pos_embed.shape[1]
    right, changed = Counter[tuple[object, ...]](), Counter[tuple[object, ...]]()
    for start, labels in _batches(vit, data):
        for alpha in alphas:
            merges = schedules.schedule(alpha, layers, tokens)
            exact = _answers(vit, merging.run(vit.blocks, *start, merges))
            right[alpha, 0, "exact"] += int((exact == labels).sum())
            reached = start
            for split, block in enumerate(vit.blocks, 1):
                reached = merging.run([block], *reached, merges[split - 1 : split])
                for precision in ("int8", "fp16"):
                    sent = _sent(reached, precision)
                    answers = _answers(vit, merging.run(vit.blocks[split:], *sent, merges[split:]))
                    right[alpha, split, precision] += int((answers == labels).sum())
                    changed[alpha, split, precision] += int((answers != exact).sum())
    lines = [
        "| alpha | split | exact | int8 | changed | fp16 | changed |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for alpha in alphas:
        for split in range(1, layers + 1):
            cells = [f"{right[alpha, 0, 'exact'] / len(data):.2%}"]
            for precision in ("int8", "fp16"):
                cells.append(f"{right[alpha, split, precision] / len(data):.2%}")
                cells.append(f"{changed[alpha, split, precision]}")
            lines.append(f"| {alpha:g} | {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sent(reached: Tokens, precision: str) -> Tokens:
    """Tokens as the server gets them."""
    arrived = []
    for tokens in reached[0].numpy():
        tensors = {name: decode(each) for name, each in pack(tokens, precision, "raw").items()}
        arrived.append(restore(tensors["tokens"], tensors.get("scales")))
    return torch.from_numpy(np.stack(arrived)), reached[1]


def _answers(vit: VisionTransformer, reached: Tokens) -> Tensor:
    return vit.forward_head(*reached).argmax(1)


def _right(vit: VisionTransformer, reached: Tokens, labels: Tensor) -> int:
    return int((_answers(vit, reached) == labels).sum())


def _batches(vit: VisionTransformer, data: photos.Photos) -> Iterator[tuple[Tokens, Tensor]]:
    for start in range(0, len(data), BATCH):
        part = slice(start, start + BATCH)
        x = vit.embed(to_patches(data.frames[part]))
        yield (x, merging.unmerged(x)), torch.from_numpy(data.labels[part])


@torch.inference_mode()
def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("--data", type=Path, required=True, help="a tar or folder of photographs")
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", type=int, help="so many, evenly apart (default: all)")
    parser.add_argument("--transport", action="store_true", help="precisions, not schedules")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 0.96, 1.32])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = photos.load([given.data], given.split)
    if given.frames:
        data = data.take(np.linspace(0, len(data) - 1, given.frames).astype(np.int64))
    vit = Serving(load(given.profile)).classifier
    print(f"{len(data)} photographs ({given.split})\n")
    print(
        transport_table(vit, data, given.alpha) if given.transport else schedules_table(vit, data)
    )


if __name__ == "__main__":
    main()
