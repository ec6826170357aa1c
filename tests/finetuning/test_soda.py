"""SODA: rotations stay rotations, also on average, and the singular values are relu(S + δ)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.soda import SODA, SODAAdapter, cayley_rotation
from fl_vitlora.state import count
from fl_vitlora.testing.method import check_method
from fl_vitlora.testing.method_clients import gap_of
from tests.conftest import random_vit
from tests.finetuning.moved_model import subject_of

SHAPES = [(6, 6), (24, 6), (6, 24), (96, 96)]


def weight_of(outputs: int, inputs: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(outputs, inputs, dtype=torch.float64)


def moved(weight: Tensor, spread: float = 0.3) -> Any:
    adapter = SODA().adapter(weight)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=spread)
    return adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_weight_at_the_start_is_the_frozen_weight_bit_by_bit(
    outputs: int, inputs: int, dtype: torch.dtype
):
    weight = weight_of(outputs, inputs).to(dtype)
    assert torch.equal(SODA().adapter(weight).adapted(weight), weight)


@pytest.mark.parametrize("size", [2, 4, 6, 16])
def test_cayley_coordinates_give_rotations_and_so_does_their_mean(size: int):
    torch.manual_seed(0)
    clients = torch.randn(3, size * (size - 1) // 2, dtype=torch.float64)
    for made in (*cayley_rotation(clients, size), cayley_rotation(clients.mean(dim=0), size)):
        assert (made @ made.T - torch.eye(size)).abs().max() < 1e-12
        assert abs(torch.linalg.det(made).item() - 1) < 1e-12


def test_the_mean_of_rotations_would_not_be_a_rotation():
    """This is why coordinates travel, and not the rotations themselves."""
    torch.manual_seed(0)
    mean = cayley_rotation(torch.randn(3, 28, dtype=torch.float64), 8).mean(dim=0)
    assert (mean @ mean.T - torch.eye(8)).abs().max() > 0.1


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_singular_values_are_the_shifted_ones_cut_at_zero(outputs: int, inputs: int):
    weight = weight_of(outputs, inputs)
    adapter = moved(weight)
    adapter.shift.data[-2:] = -100.0
    expected = torch.relu(adapter.S + adapter.shift).sort(descending=True).values
    found = torch.linalg.svdvals(adapter.adapted(weight))
    assert (expected == 0).sum() == 2
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_weight_is_the_product_of_the_formed_matrices(outputs: int, inputs: int):
    weight = weight_of(outputs, inputs)
    adapter = moved(weight)
    rotation = torch.ones(1, 1, dtype=torch.float64)
    for small in adapter.rotations():
        rotation = torch.kron(rotation, small)
    values = torch.diag(torch.relu(adapter.S + adapter.shift))
    expected = adapter.U @ values @ adapter.Vt @ rotation.T
    assert (adapter.adapted(weight) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("width", "numbers"), [(384, 21_840), (768, 44_688)])
def test_vits_of_the_usual_sizes_train_as_many_numbers_as_published(width: int, numbers: int):
    """q, k, v and proj in 12 blocks of ViT-S and ViT-B."""
    adapter = SODAAdapter(torch.eye(width), exact=False)
    assert 48 * sum(p.numel() for p in adapter.parameters()) == numbers


def test_the_exact_variant_trains_one_number_for_each_singular_value():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="soda", parameters={"exact": True}), 0)
    assert count(methods.trainable(model)) == 6 * 2 * 96 + 970


def test_decompositions_never_travel_and_are_equal_at_all_parties():
    buffers, trained = [], []
    for _ in range(2):
        model = random_vit().model
        methods.prepare(model, FineTuningConfig(method="soda"), 5)
        trained += [name.rpartition(".")[2] for name in methods.trainable(model)]
        buffers.append({n: t for n, t in model.named_buffers() if "adapters" in n})
    assert set(trained) == {"shift", "turn", "weight", "bias"}
    assert len(buffers[0]) == 6 * 2 * 3
    assert all(torch.equal(tensor, buffers[1][name]) for name, tensor in buffers[0].items())


def test_averages_are_biased_but_exact_for_equal_clients():
    assert gap_of(subject_of(SODA())) > 1e-3
    assert gap_of(subject_of(SODA()), seeds=(1, 1)) < 1e-12


def test_averages_of_shifts_alone_are_exact_while_the_singular_values_stay_positive():
    weight = weight_of(6, 24)
    adapter = SODA(exact=True).adapter(weight)
    shifts = torch.randn(2, 6, dtype=torch.float64)
    assert bool((adapter.S + shifts > 0).all())
    made = []
    for shift in (shifts[0], shifts[1], shifts.mean(dim=0)):
        adapter.shift.data = shift
        made.append(adapter.adapted(weight))
    assert ((made[0] + made[1]) / 2 - made[2]).abs().max() < 1e-14


def test_a_prime_number_of_inputs_is_refused_unless_they_are_not_rotated():
    weight = weight_of(4, 7)
    with pytest.raises(UserError, match="a layer with 7 inputs has no Kronecker factors"):
        SODA().adapter(weight)
    assert torch.equal(SODA(exact=True).adapter(weight).adapted(weight), weight)


def test_shifts_have_a_learning_rate_of_their_own():
    part = SODA(shift_rate=3.0)
    assert part.rate("blocks.0.attn.qkv.adapters.q.shift") == 3
    assert part.rate("blocks.0.attn.qkv.adapters.q.turn") == 1


@pytest.mark.parametrize("exact", [False, True])
def test_both_variants_keep_every_rule_on_slices_of_any_shape(*, exact: bool):
    check_method(SODA(exact=exact, targets=("v", "fc1", "fc2")))
