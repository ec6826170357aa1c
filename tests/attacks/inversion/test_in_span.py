"""Moves make patches equal or swap them, and images are made of the span's vectors."""

from __future__ import annotations

import torch

from fl_vitlora.attacks.inversion.in_span import MOVES, neighbours


def test_every_copy_and_every_swap_is_tried_once():
    rows = torch.arange(5).unsqueeze(1)
    found = {tuple(move.flatten().tolist()) for move in neighbours(rows, torch.Generator())}
    assert len(found) == 5 * 4 + 5 * 4 // 2
    copies = [move for move in found if len(set(move)) == 4]
    swaps = [move for move in found if len(set(move)) == 5]
    assert (len(copies), len(swaps)) == (20, 10)


def test_of_too_many_moves_some_are_drawn_always_the_same_ones():
    rows = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    one, other = (neighbours(rows, torch.Generator().manual_seed(5)) for _ in range(2))
    assert len(one) == MOVES
    assert torch.equal(one, other)
