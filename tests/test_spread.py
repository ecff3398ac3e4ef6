"""Attention spreads to the places around the patches it was on."""

from __future__ import annotations

import torch

from server.models.spread import spread


def test_the_neighbours_of_what_is_looked_at_come_first() -> None:
    attention = torch.tensor([[0.6, 0.01, 0.01]])
    indices = torch.tensor([[0, 12, 15]])  # on a grid of 4: a corner, and two of the bottom row
    looked = spread(attention, indices, 4)
    assert looked.shape == (1, 16)
    assert looked[0, [1, 4, 5]].min() > looked[0, [8, 13, 14, 11]].max()


def test_frames_of_a_batch_do_not_mix() -> None:
    attention = torch.tensor([[0.5, 0.1], [0.1, 0.5]])
    indices = torch.tensor([[0, 15], [3, 9]])
    together = spread(attention, indices, 4)
    for row in range(2):
        alone = spread(attention[row : row + 1], indices[row : row + 1], 4)
        assert torch.allclose(together[row], alone[0])


def test_far_from_everything_there_is_nothing_to_see() -> None:
    looked = spread(torch.tensor([[0.9]]), torch.tensor([[0]]), 14)
    assert looked[0, 195] < 1e-6 < looked[0, 1]
