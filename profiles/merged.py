"""What merging and coarser tokens cost a classifier in accuracy, in torch alone.

    python -m profiles.merged imagenette --data imagenette.tar
    python -m profiles.merged imagenette --data imagenette.tar --transport frames
    python -m profiles.merged imagenette --data imagenette.tar --transport tokens
    python -m profiles.merged imagenette --data imagenette-train.tar --transport frames --held-out

The first is the whole model with merging, off the shelf: Janus's schedule over alpha, the linear
one and ToMe's fixed r, side by side at the share of tokens that they merge away (mean over layers).
The others are frames sent as JPEG, and every split with tokens sent as int8 and as fp16, next to
exact ones. Differences are paired: the same photographs, with one standard error. What is chosen by
them is chosen on photographs that training held out.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import merging as schedules
from common.codec import decode, encode
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
QUALITIES = (90, 75, 50)
PRECISIONS = ("int8", "fp16")
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


class Paired:
    """Answers of several ways to the same photographs, next to one of them."""

    def __init__(self) -> None:
        self.total = 0
        self.right = Counter[str]()
        self._gained = Counter[str]()
        self._lost = Counter[str]()

    def add(self, labels: Tensor, exact: Tensor, answers: Mapping[str, Tensor]) -> None:
        """A batch: what is right, what the way to compare with says, and the others, [n] each."""
        self.total += len(labels)
        before = exact == labels
        for way, answer in answers.items():
            now = answer == labels
            self.right[way] += int(now.sum())
            self._gained[way] += int((now & ~before).sum())
            self._lost[way] += int((before & ~now).sum())

    def cells(self, way: str) -> str:
        """Accuracy; answers that became right, and wrong; points gained, with one standard error.

        Photographs answered alike by both tell nothing of the difference: McNemar's.
        """
        gained, lost = self._gained[way], self._lost[way]
        gain = (gained - lost) / self.total
        error = math.sqrt((gained + lost) / self.total - gain**2) / math.sqrt(self.total)
        return (
            f"{self.right[way] / self.total:.2%} | {gained} | {lost} "
            f"| {100 * gain:+.2f} ± {100 * error:.2f}"
        )


def schedules_table(vit: VisionTransformer, data: photos.Photos) -> str:
    """Accuracy of every schedule, next to no merging."""
    layers, tokens = len(vit.blocks), vit.pos_embed.shape[1]
    named, paired = settings(layers, tokens), Paired()
    for part in _batches(data):
        start, labels = _start(vit, data.frames[part]), torch.from_numpy(data.labels[part])
        answers = {
            name: _answers(vit, merging.run(vit.blocks, *start, merges))
            for name, merges in named.items()
        }
        paired.add(labels, answers["alpha 0"], answers)
    lines = [
        "| schedule | merges | tokens left | merged away | accuracy | right now | wrong now "
        "| points |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, merges in named.items():
        left = schedules.remaining(merges, tokens)
        share = 1 - np.mean(left[:-1]) / tokens
        lines.append(
            f"| {name} | {' '.join(map(str, merges))} | {left[-1]} | {share:.1%} "
            f"| {paired.cells(name)} |"
        )
    return "\n".join(lines)


def frames_table(vit: VisionTransformer, data: photos.Photos, alphas: list[float]) -> str:
    """Accuracy of frames sent as JPEG, next to exact ones."""
    layers, tokens = len(vit.blocks), vit.pos_embed.shape[1]
    every = {alpha: Paired() for alpha in alphas}
    for part in _batches(data):
        frames, labels = data.frames[part], torch.from_numpy(data.labels[part])
        exact = _start(vit, frames)
        sent = {f"JPEG {q}": _start(vit, _as_jpeg(frames, q)) for q in QUALITIES}
        for alpha, paired in every.items():
            merges = schedules.schedule(alpha, layers, tokens)
            answers = {
                way: _answers(vit, merging.run(vit.blocks, *start, merges))
                for way, start in sent.items()
            }
            paired.add(labels, _answers(vit, merging.run(vit.blocks, *exact, merges)), answers)
    return _of_alphas(every)


def tokens_table(vit: VisionTransformer, data: photos.Photos, alphas: list[float]) -> str:
    """Accuracy of every split and precision, next to exact tokens."""
    layers, tokens = len(vit.blocks), vit.pos_embed.shape[1]
    every = {alpha: Paired() for alpha in alphas}
    for part in _batches(data):
        start, labels = _start(vit, data.frames[part]), torch.from_numpy(data.labels[part])
        for alpha, paired in every.items():
            merges = schedules.schedule(alpha, layers, tokens)
            answers, reached = {}, start
            for split, block in enumerate(vit.blocks, 1):
                reached = merging.run([block], *reached, merges[split - 1 : split])
                for precision in PRECISIONS:
                    rest = vit.blocks[split:], *_sent(reached, precision), merges[split:]
                    answers[f"split {split}, {precision}"] = _answers(vit, merging.run(*rest))
            paired.add(labels, _answers(vit, reached), answers)
    return _of_alphas(every)


def _of_alphas(every: Mapping[float, Paired]) -> str:
    lines = [
        "| alpha | sent | accuracy | right now | wrong now | points |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {alpha:g} | {way} | {paired.cells(way)} |"
        for alpha, paired in every.items()
        for way in paired.right
    ]
    return "\n".join(lines)


def _as_jpeg(frames: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Frames [n, H, W, 3] as the server gets them."""
    return np.stack([decode(encode(frame, "jpeg", quality=quality)) for frame in frames])


def _sent(reached: Tokens, precision: str) -> Tokens:
    """Tokens as the server gets them."""
    arrived = []
    for tokens in reached[0].numpy():
        tensors = {name: decode(each) for name, each in pack(tokens, precision, "raw").items()}
        arrived.append(restore(tensors["tokens"], tensors.get("scales")))
    return torch.from_numpy(np.stack(arrived)), reached[1]


def _answers(vit: VisionTransformer, reached: Tokens) -> Tensor:
    return vit.forward_head(*reached).argmax(1)


def _start(vit: VisionTransformer, frames: npt.NDArray[np.uint8]) -> Tokens:
    """Embedded frames [n, H, W, 3]."""
    x = vit.embed(to_patches(frames))
    return x, merging.unmerged(x)


def _batches(data: photos.Photos) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, len(data), BATCH))


TRANSPORT = {"frames": frames_table, "tokens": tokens_table}


@torch.inference_mode()
def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("--data", type=Path, required=True, help="a tar or folder of photographs")
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", type=int, help="so many, evenly apart (default: all)")
    parser.add_argument("--held-out", action="store_true", help="those held out of training")
    parser.add_argument("--transport", choices=tuple(TRANSPORT), help="not schedules: what is sent")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0], help="of --transport")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = photos.load([given.data], "train" if given.held_out else given.split)
    if given.held_out:
        data = data.take(photos.split_off(data)[1])
    if given.frames:
        data = data.take(np.linspace(0, len(data) - 1, given.frames).astype(np.int64))
    vit = Serving(load(given.profile)).classifier
    print(f"{len(data)} photographs ({'held out' if given.held_out else given.split})\n")
    if given.transport:
        print(TRANSPORT[given.transport](vit, data, given.alpha))
    else:
        print(schedules_table(vit, data))


if __name__ == "__main__":
    main()
