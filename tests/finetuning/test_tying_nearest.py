"""The two blocks with the most similar products are tied, in whatever basis they are written."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.tying_nearest import nearest_tied, pairs_of
from fl_vitlora.state import State

PAIR = "attn.qkv.adapters.q"


def pairs(*products: torch.Tensor) -> State:
    """Returns a pair for each block whose product is the given matrix; the bases differ."""
    tensors = State()
    for block, product in enumerate(products):
        basis = torch.tensor([[2.0, 1.0], [1.0, 1.0 + block]])
        tensors[f"blocks.{block}.{PAIR}.lora_B"] = product @ torch.linalg.inv(basis)
        tensors[f"blocks.{block}.{PAIR}.lora_A"] = basis
    return tensors


def test_similar_products_are_tied_and_the_earlier_block_stays():
    torch.manual_seed(0)
    one, other = torch.randn(2, 2), torch.randn(2, 2)
    tensors = pairs(other, one, 3 * one + 0.01 * torch.randn(2, 2), -other)
    assert nearest_tied([0, 1, 2, 3], tensors) == [0, 1, 1, 3]
    assert len(set(nearest_tied([0, 1, 1, 3], tensors))) == 2


def test_names_of_a_block_do_not_include_those_of_another_with_the_same_first_digit():
    tensors = {f"blocks.{block}.{PAIR}.lora_A": torch.ones(1) for block in (1, 11)}
    assert list(pairs_of(1, tensors)) == [f"{PAIR}.lora_A"]
