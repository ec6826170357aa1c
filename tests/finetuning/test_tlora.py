"""TLoRA: the transform starts at the identity, has full rank after a step, and is held there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fl_vitlora.config import FineTuningConfig, TrainingConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.kronecker import times_ring
from fl_vitlora.finetuning.tlora import TLoRA, TLoRAAdapter, identity_core
from fl_vitlora.state import count
from fl_vitlora.testing.method import check_method
from fl_vitlora.testing.method_clients import gap_of
from fl_vitlora.training.optimizers import make_optimizer
from tests.conftest import random_vit
from tests.finetuning.moved_model import subject_of


def transform(adapter: TLoRAAdapter, inputs: int) -> Tensor:
    """Forms T, (n, n)."""
    return times_ring(torch.eye(inputs, dtype=torch.float64), list(adapter.transform))


@pytest.mark.parametrize("ring_rank", [1, 2, 4])
def test_the_transform_starts_at_the_identity(ring_rank: int):
    adapter = TLoRA(ring_rank=ring_rank).adapter(torch.empty(5, 96)).double()
    assert (transform(adapter, 96) - torch.eye(96)).abs().max() == 0
    weight = torch.randn(5, 96, dtype=torch.float64)
    assert torch.allclose(adapter.adapted(weight), weight, atol=1e-14, rtol=0)
    assert torch.equal(TLoRA().adapter(weight).double().adapted(weight), weight)


@pytest.mark.parametrize("ring_rank", [1, 2, 3])
def test_methods_with_any_ring_rank_keep_every_rule(ring_rank: int):
    check_method(TLoRA(ring_rank=ring_rank, targets=("q", "fc2"), residual_rank=2))


@pytest.mark.parametrize(
    ("width", "ring_rank", "residual_rank", "sent"),
    [(384, 1, 1, 89_472), (384, 1, 2, 163_200), (768, 1, 1, 173_568), (768, 1, 2, 321_024)],
)
def test_vits_of_the_usual_sizes_send_as_many_bytes_as_published(
    width: int, ring_rank: int, residual_rank: int, sent: int
):
    """q and v in 12 blocks of ViT-S and ViT-B, four bytes a number."""
    part = TLoRA(ring_rank=ring_rank, residual_rank=residual_rank)
    adapter = part.adapter(torch.empty(width, width))
    assert 4 * 24 * sum(p.numel() for p in adapter.parameters()) == sent


@pytest.mark.parametrize(("width", "numbers"), [(384, 164), (768, 272)])
def test_cores_have_ring_rank_squared_times_as_many_numbers(width: int, numbers: int):
    for ring_rank in (1, 2, 3):
        cores = TLoRA(ring_rank=ring_rank).adapter(torch.empty(width, width)).transform
        assert sum(core.numel() for core in cores) == numbers * ring_rank**2


def test_the_bundled_model_trains_as_many_numbers_as_one_can_count():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="tlora"), 0)
    assert count(methods.trainable(model)) == 6 * 2 * (16 + 16 + 36 + 2 * 96) + 970


def test_after_one_step_the_transform_is_dense_and_has_full_rank():
    torch.manual_seed(0)
    weight, pull = torch.randn(96, 96).double(), torch.randn(96, 96).double()
    adapter = TLoRA().adapter(weight).double()
    (adapter.adapted(weight) * pull).sum().backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        parameter.data -= 0.01 * parameter.grad.sign()
    made = transform(adapter, 96)
    assert torch.linalg.matrix_rank(made) == 96
    assert made.count_nonzero() == made.numel()


def test_with_a_resting_transform_it_is_lora():
    torch.manual_seed(0)
    weight = torch.randn(6, 24, dtype=torch.float64)
    adapter = TLoRA(residual_rank=4, residual_alpha=3.0).adapter(weight).double()
    adapter.lora_B.data.normal_()
    expected = weight + 3.0 / 2 * adapter.lora_B @ adapter.lora_A
    assert torch.allclose(adapter.adapted(weight), expected, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("ring_rank", [1, 2])
def test_the_penalty_is_the_squared_distance_of_the_cores_to_their_start(ring_rank: int):
    part = TLoRA(ring_rank=ring_rank, identity_penalty=0.5)
    core = identity_core(4, ring_rank)
    parameters = {"lora:blocks.0.q.transform.0": core, "blocks.0.q.lora_A": torch.ones(2, 4)}
    assert part.penalty(parameters, parameters) == 0
    parameters["lora:blocks.0.q.transform.0"] = core + 2
    assert part.penalty(parameters, parameters) == 0.5 * 4 * 4 * 4 * ring_rank**2
    assert part.penalty({"head.weight": core}, {}) == 0


def test_the_penalty_pulls_cores_together_that_are_scaled_against_each_other():
    """c·A¹ and A²/c make the same T; the penalty is smallest at c = 1."""
    part = TLoRA()
    values = []
    for factor in (0.5, 1.0, 2.0):
        one, two = factor * identity_core(4, 1), identity_core(4, 1) / factor
        values.append(float(part.penalty({"q.transform.0": one, "q.transform.1": two}, {})))
    assert values[1] == 0
    assert min(values[0], values[2]) > 0


def test_cores_have_a_learning_rate_of_their_own():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="tlora", parameters={"core_rate": 0.25}), 0)
    own = {n: p for n, p in methods.trainable(model).items() if ".transform." in n}
    made = make_optimizer(own, TrainingConfig(), 2.0, methods.rates(model))
    assert [group["lr"] for group in made.param_groups] == [0.5]


def test_averages_are_biased_but_exact_for_equal_clients():
    assert gap_of(subject_of(TLoRA())) > 1e-3
    assert gap_of(subject_of(TLoRA()), seeds=(1, 1)) < 1e-12


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="a layer with 7 inputs has no Kronecker factors"):
        TLoRA().adapter(torch.empty(4, 7))
    with pytest.raises(UserError, match=r"parameters\.residual_rank 5: .* at most 4$"):
        TLoRA(residual_rank=5).adapter(torch.empty(4, 6))
