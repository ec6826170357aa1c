"""HTA: reflections are orthogonal, and the singular values of the increment are |d|."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.hta import HTA, householder_increment
from fl_vitlora.state import count
from fl_vitlora.testing.method import check_method
from fl_vitlora.testing.method_clients import gap_of
from tests.conftest import random_vit
from tests.finetuning.moved_model import subject_of

SHAPES = [(6, 6), (24, 6), (6, 24), (384, 96)]


def reflection(normal: Tensor) -> Tensor:
    """Forms H(v) as the definition says."""
    return torch.eye(len(normal)) - 2 * torch.outer(normal, normal) / normal.square().sum()


def vectors(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = (outputs, min(outputs, inputs), inputs)
    a, d, b = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return a, d, b


def test_logits_at_the_start_are_those_of_the_plain_model_bit_by_bit():
    model = random_vit().model.double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = model(images)
    config = FineTuningConfig(method="hta", targets=("q", "k", "v", "proj", "fc1", "fc2"))
    methods.prepare(model, config, 0)
    assert torch.equal(model.double()(images), expected)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_increment_of_ones_is_orthogonal_whatever_the_lengths_of_a_and_b(scale: float):
    """It is the product of two reflections: a rotation. With b = a it is the identity."""
    a, d, b = vectors(96, 96)
    made = householder_increment(scale * a, torch.ones_like(d), b / scale)
    assert (made @ made.T - torch.eye(96)).abs().max() < 1e-14
    assert abs(torch.linalg.det(made).item() - 1) < 1e-12
    same = householder_increment(scale * a, torch.ones_like(d), a)
    assert (same - torch.eye(96)).abs().max() < 1e-14


def test_each_reflection_turns_its_normal_and_keeps_the_plane():
    a, d, _ = vectors(96, 96)
    made = householder_increment(a, torch.ones_like(d), torch.eye(96)[0].double())
    # H(b) turns the first column of the identity and keeps the others
    assert torch.allclose(made[:, 1:], reflection(a)[:, 1:], atol=1e-14)
    assert torch.allclose(made[:, 0], -reflection(a)[:, 0], atol=1e-14)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_singular_values_are_the_absolute_values_of_d(outputs: int, inputs: int):
    a, d, b = vectors(outputs, inputs)
    found = torch.linalg.svdvals(householder_increment(a, d, b))
    assert (found - d.abs().sort(descending=True).values).abs().max() < 1e-13


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_increment_is_the_product_of_the_formed_matrices(outputs: int, inputs: int):
    a, d, b = vectors(outputs, inputs)
    wide = torch.zeros(outputs, inputs, dtype=torch.float64)
    wide.diagonal().copy_(d)
    expected = reflection(a) @ wide @ reflection(b)
    assert (householder_increment(a, d, b) - expected).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("width", "slices", "exact", "numbers"),
    [
        (768, 48, False, 184_320),  # ViT-B on q, k, v and proj
        (768, 24, False, 92_160),  # ViT-B on q and v
        (384, 48, False, 92_160),  # ViT-S on q, k, v and proj, 368,640 bytes
        (384, 48, True, 36_864),  # ViT-S on q, k, v and proj, 147,456 bytes
    ],
)
def test_vits_of_the_usual_sizes_train_as_many_numbers_as_published(
    *, width: int, slices: int, exact: bool, numbers: int
):
    adapter = HTA(exact=exact).adapter(torch.empty(width, width))
    assert slices * sum(p.numel() for p in adapter.parameters()) == numbers


def test_the_exact_variant_trains_and_sends_d_and_u_alone():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="hta", parameters={"exact": True}), 0)
    names = [name for name in methods.trainable(model) if not name.startswith("head")]
    assert {name.rpartition(".")[2] for name in names} == {"diagonal", "pair_out"}
    assert count(methods.trainable(model)) == 6 * 2 * 2 * 96 + 970


def test_vectors_that_are_not_sent_are_equal_at_all_parties():
    buffers = []
    for _ in range(2):
        model = random_vit().model
        methods.prepare(model, FineTuningConfig(method="hta", parameters={"exact": True}), 5)
        buffers.append({n: t for n, t in model.named_buffers() if "adapters" in n})
    assert len(buffers[0]) == 6 * 2 * 3
    assert all(torch.equal(tensor, buffers[1][name]) for name, tensor in buffers[0].items())


def test_the_average_of_the_exact_variant_is_exact_and_that_of_all_vectors_is_not():
    assert gap_of(subject_of(HTA(exact=True))) < 1e-12
    assert gap_of(subject_of(HTA())) > 1e-3
    assert gap_of(subject_of(HTA()), seeds=(1, 1)) < 1e-12


def test_one_step_moves_d_and_u_and_gives_the_other_vectors_a_gradient_of_zero():
    adapter = HTA().adapter(torch.empty(8, 6))
    layer = nn.Parameter(torch.zeros(8, 6))
    (adapter.adapted(layer) * torch.randn(8, 6)).sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()) == (name in ("diagonal", "pair_out"))


@pytest.mark.parametrize("exact", [False, True])
def test_both_variants_keep_every_rule_on_slices_of_any_shape(*, exact: bool):
    check_method(HTA(exact=exact, targets=("v", "fc1", "fc2")))
