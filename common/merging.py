"""How many tokens each layer of a vision transformer merges: schedules as plain whole numbers.

The stored text of the Janus paper lost its formulas (1) and (2); these readings fit everything
that the text still says. With x0 tokens (the class token counts) and N layers, layer l = 1..N
merges

    (1)  floor(2^(alpha * (N - l))) - 1

which is zero for alpha = 0, falls with l, and for alpha = 0.25 and N = 24 puts about nine tenths
of all merging into the front half. (2) bounds alpha: no layer merges more than half of the
tokens that are not protected, which is all that one bipartite matching can merge (Bolya et al.
2023, "Token Merging"); so the total stays at or below x0 - 1, as the text asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

STEP = 0.01
"""Alpha goes from 0 in steps of this size (Janus, section V-B)."""
PROTECTED = 1
"""The class token is never merged into another one."""

Merges = tuple[int, ...]


def schedule(alpha: float, layers: int, tokens: int) -> Merges:
    """Merges of layers 1..N by the exponential form (1). Raises ValueError above `alpha_max`."""
    merges = _exponential(alpha, layers)
    if alpha < 0 or not fits(merges, tokens):
        raise ValueError(
            f"alpha={alpha:g}: {layers} layers on {tokens} tokens allow 0 to "
            f"{alpha_max(layers, tokens):g}"
        )
    return merges


def linear(alpha: float, layers: int, tokens: int) -> Merges:
    """Merges of layers 1..N that fall linearly: floor(alpha * (N - l)), less where too many."""
    return limit((_floor(alpha * (layers - layer)) for layer in range(1, layers + 1)), tokens)


def fixed(r: int, layers: int, tokens: int) -> Merges:
    """ToMe's own schedule: `r` tokens in every layer, less where there are not so many."""
    return limit((r for _ in range(layers)), tokens)


def grid(layers: int, tokens: int, step: float = STEP) -> tuple[float, ...]:
    """Every alpha that fits, ascending from 0, the last one being `alpha_max`."""
    return tuple(_round(i * step) for i in range(_steps(layers, tokens, step) + 1))


def alpha_max(layers: int, tokens: int, step: float = STEP) -> float:
    """The largest alpha of the grid that fulfils (2)."""
    return grid(layers, tokens, step)[-1]


def remaining(merges: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Tokens that enter layers 1..N, and that leave the last one: N + 1 numbers.

    Layer l attends over entry l - 1; its MLP, which follows the merging, sees entry l.
    """
    counts = [tokens]
    for r in merges:
        counts.append(counts[-1] - r)
    return tuple(counts)


def limit(merges: Iterable[int], tokens: int) -> Merges:
    """`merges` with each layer's cut to what can be merged there. Raises ValueError below 0."""
    cut = []
    for r in merges:
        if r < 0:
            raise ValueError(f"{r} tokens cannot be merged: give 0 or more")
        cut.append(min(r, mergeable(tokens)))
        tokens -= cut[-1]
    return tuple(cut)


def mergeable(tokens: int) -> int:
    """How many of `tokens` one layer can merge at most: half of those not protected."""
    return max(0, (tokens - PROTECTED) // 2)


def fits(merges: Sequence[int], tokens: int) -> bool:
    """Whether each layer of `tokens` at the start can merge that many."""
    return all(
        0 <= r <= mergeable(n) for r, n in zip(merges, remaining(merges, tokens), strict=False)
    )


def _exponential(alpha: float, layers: int) -> Merges:
    exponents = (_round(alpha * (layers - layer)) for layer in range(1, layers + 1))
    return tuple(_floor(2.0**exponent) - 1 for exponent in exponents)


@cache
def _steps(layers: int, tokens: int, step: float) -> int:
    count = 0
    while layers > 1 and fits(_exponential(_round((count + 1) * step), layers), tokens):
        count += 1
    return count


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)


def _round(value: float) -> float:
    """Without what binary fractions add, so that 0.07 * 100 is 7."""
    return round(value, 9)
