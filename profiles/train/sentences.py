"""Labelled sentences from tab-separated files, cut into training and validation by sentence.

SST-2's training set holds sentences *and their phrases*. Cut at random, most phrases of the
validation part would have their sentence in the training part, and confidences would look better
than they are. So phrases follow the longest sentence that contains them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

HEADER = "sentence\tlabel"
HELD = 0.1
"""Share of the sentences held out for validation."""
POOL = 50
"""Batches whose sentences are sorted by length together: little padding, and still shuffled."""


@dataclass(frozen=True)
class Sentences:
    """Texts, labels int64 [n], and for each the number of the sentence it is part of, int64 [n]."""

    texts: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, rows: npt.NDArray[np.intp]) -> Sentences:
        """Some of them."""
        return Sentences(
            tuple(self.texts[row] for row in rows), self.labels[rows], self.parents[rows]
        )

    @property
    def whole(self) -> npt.NDArray[np.intp]:
        """Rows of the sentences that are part of no other."""
        _, rows = np.unique(self.parents, return_index=True)
        return rows


def load(paths: Sequence[Path]) -> Sentences:
    """All rows of tab-separated files with the header ``sentence<TAB>label``, longest first.

    Raises ValueError, naming file and line, for one that is not such a row.
    """
    rows = []
    for path in paths:
        lines = path.read_text().splitlines()
        if not lines or lines[0] != HEADER:
            raise ValueError(f"{path}: the first line is not 'sentence<TAB>label'")
        for number, line in enumerate(lines[1:], start=2):
            text, tab, label = line.rpartition("\t")
            if not tab or not label.isdecimal():
                raise ValueError(f"{path}, line {number}: not a sentence, a tab and a label")
            rows.append((text.strip(), int(label)))
    rows.sort(key=lambda row: (-len(row[0].split()), row[0]))
    texts = tuple(text for text, _ in rows)
    return Sentences(texts, np.array([label for _, label in rows]), _parents(texts))


def split(data: Sentences, seed: int) -> tuple[Sentences, Sentences]:
    """Training and validation; no sentence has phrases in both."""
    parents = np.unique(data.parents)
    order = np.random.default_rng([seed, 4]).permutation(parents)
    held = np.isin(data.parents, order[: max(1, round(HELD * len(parents)))])
    return data.part(np.flatnonzero(~held)), data.part(np.flatnonzero(held))


def batches(
    lengths: npt.NDArray[np.intp], size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.intp]]:
    """Every row once, in batches of ``size`` rows of about one length, in random order."""
    rng = np.random.default_rng([seed, 5, epoch])
    order = rng.permutation(len(lengths))
    out: list[npt.NDArray[np.intp]] = []
    for start in range(0, len(order), POOL * size):
        pool = order[start : start + POOL * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        out.extend(pool[place : place + size] for place in range(0, len(pool), size))
    return [out[place] for place in rng.permutation(len(out))]


def _parents(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each text, longest first, the number of the first text that contains it."""
    roots: list[str] = []
    having: defaultdict[str, list[int]] = defaultdict(list)
    parents = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts):
        words = text.split()
        padded = f" {' '.join(words)} "
        rarest = min(words, key=lambda word: len(having[word]), default="")
        found = next(_containing(padded, having[rarest], roots), None)
        if found is None:
            found = len(roots)
            roots.append(padded)
            for word in set(words):
                having[word].append(found)
        parents[row] = found
    return parents


def _containing(text: str, candidates: Sequence[int], roots: Sequence[str]) -> Iterator[int]:
    return (root for root in candidates if text in roots[root])
