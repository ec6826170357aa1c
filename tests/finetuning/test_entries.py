"""Single entries of a matrix: which are chosen, and where new values go."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.entries import largest, scattered, smallest

WEIGHT = torch.tensor([[2.0, -2.0, 2.0], [1.0, 0.0, -5.0]])


def test_equal_entries_are_chosen_in_their_order():
    assert largest(WEIGHT, 3).tolist() == [0, 1, 5]
    assert smallest(WEIGHT, 3)[0].tolist() == [0, 3, 4]


def test_the_next_magnitude_is_the_smallest_one_that_is_not_chosen():
    assert [float(smallest(WEIGHT, chosen)[1]) for chosen in (1, 2, 5, 6)] == [1.0, 2.0, 5.0, 5.0]


def test_values_of_several_clients_go_to_the_same_places_or_to_their_own():
    values, own = torch.tensor([[7.0, 8.0], [9.0, 6.0]]), torch.tensor([[0, 5], [1, 2]])
    shared = scattered(WEIGHT, own[0], values)
    assert torch.equal(shared, torch.stack([scattered(WEIGHT, own[0], v) for v in values]))
    apart = [scattered(WEIGHT, p, v) for p, v in zip(own, values, strict=True)]
    assert torch.equal(scattered(WEIGHT, own, values), torch.stack(apart))
    assert apart[1].tolist() == [[2.0, 9.0, 6.0], [1.0, 0.0, -5.0]]
    assert WEIGHT[0, 0] == 2.0
