"""Token merging in torch: who merges with whom, and what attention makes of what comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.merging import fixed, remaining
from server.models import merging
from server.models.vit import Block, VisionTransformer, ViTConfig


def tokens(n: int, d: int = 8, b: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(b, n, d, generator=torch.Generator().manual_seed(seed))


def by_hand(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[list[Tensor], list[float]]:
    """One set of tokens, slowly: cosine of every pair, the r best of A, weighted means."""
    a, b = range(0, len(x), 2), range(1, len(x), 2)
    best = []
    for i in a:
        if i == 0:
            continue
        likeness = [float(torch.cosine_similarity(metric[i], metric[j], dim=0)) for j in b]
        best.append((max(likeness), i, likeness.index(max(likeness))))
    chosen = sorted(best, reverse=True)[:r]
    sums = {j: x[j] * size[j] for j in b}
    sizes = {j: float(size[j]) for j in b}
    for _, i, place in chosen:
        sums[b[place]] = sums[b[place]] + x[i] * size[i]
        sizes[b[place]] += float(size[i])
    gone = {i for _, i, _ in chosen}
    rows = [x[i] for i in a if i not in gone] + [sums[j] / sizes[j] for j in b]
    return rows, [float(size[i]) for i in a if i not in gone] + [sizes[j] for j in b]


@pytest.mark.parametrize("n", [3, 10, 17])
@pytest.mark.parametrize("r", [0, 1, 4, 8])
def test_it_is_bipartite_soft_matching(n: int, r: int) -> None:
    r = min(r, (n - 1) // 2)
    x, metric = tokens(n), tokens(n, 5, seed=1)
    size = torch.arange(1.0, n + 1).expand(2, n)
    merged, sizes = merging.merge(x, size, merging.match(metric, r))
    assert merged.shape == (2, n - r, 8)
    for each in range(2):
        rows, expected = by_hand(metric[each], x[each], size[each], r)
        torch.testing.assert_close(merged[each], torch.stack(rows))
        torch.testing.assert_close(sizes[each], torch.tensor(expected))


def test_the_class_token_stays_itself_and_first() -> None:
    """Even where it is the most alike of all."""
    x = tokens(9)
    metric = tokens(9, 5, seed=1)
    metric[:, 1] = metric[:, 0]
    merged, sizes = merging.merge(x, merging.unmerged(x), merging.match(metric, 4))
    torch.testing.assert_close(merged[:, 0], x[:, 0])
    assert (sizes[:, 0] == 1).all()


def block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    made = Block(12, 3, 2.0, 1e-6).eval().requires_grad_(False)
    for value in made.parameters():
        value.normal_(std=0.5)
    return made


def test_nothing_merged_is_the_plain_block() -> None:
    layer, x = block(), tokens(7, 12)
    merged, sizes = merging.block_merging(layer, x, merging.unmerged(x), 0)
    torch.testing.assert_close(merged, layer(x))
    assert (sizes == 1).all()


def test_one_token_of_size_two_is_attended_as_two_equal_ones() -> None:
    """What proportional attention is for."""
    layer, x = block(), tokens(6, 12, b=1)
    twice = torch.cat((x, x[:, 3:4]), 1)
    size = torch.tensor([[1.0, 1, 1, 2, 1, 1]])
    got, _ = merging.block_merging(layer, x, size, 0)
    torch.testing.assert_close(got, layer(twice)[:, :6])
    blind, _ = merging.block_merging(layer, x, merging.unmerged(x), 0)
    assert (got - blind).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_equal_patches_merge_without_loss(pool: str) -> None:
    """Duplicates beside each other, no positions: as many as there are of them may go."""
    torch.manual_seed(0)
    config = ViTConfig(dim=12, depth=3, heads=3, classes=5, image=64, pool=pool)  # type: ignore[arg-type]
    vit = VisionTransformer(config).eval().requires_grad_(False)
    for value in vit.parameters():
        value.normal_(std=0.4)
    pairs = tokens(8, 12).repeat_interleave(2, 1)
    x = torch.cat((tokens(1, 12, seed=3), pairs), 1)  # the two of a pair fall into A and B
    whole, _ = vit.forward_features(x)
    merged, sizes = merging.run(vit.blocks, x, merging.unmerged(x), (8, 0, 0))
    assert merged.shape[1] == 9
    torch.testing.assert_close(
        vit.forward_head(merged, sizes), vit.forward_head(whole), atol=1e-4, rtol=1e-4
    )


def test_sizes_always_sum_to_all_tokens() -> None:
    layers = torch.nn.ModuleList(block(seed) for seed in range(4))
    x = tokens(33, 12)
    merges = fixed(9, 4, 33)
    merged, sizes = merging.run(layers, x, merging.unmerged(x), merges)
    assert merged.shape[1] == remaining(merges, 33)[-1]
    assert (sizes.sum(1) == 33).all()


def test_as_many_merges_as_blocks() -> None:
    x = tokens(9, 12)
    with pytest.raises(ValueError, match="shorter"):
        merging.run([block(), block()], x, merging.unmerged(x), (1,))
