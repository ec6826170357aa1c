"""No training moves an entry farther than the bound, and some training moves it as far."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.training.movement import excess, reach, step_sum
from fl_vitlora.training.optimizers import BETA2, make_optimizer

STEPS = 9


def moved(gradients: torch.Tensor, config: TrainingConfig) -> torch.Tensor:
    """Returns how far entries move with given gradients, (T, n), at the rate 1."""
    weight = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    optimizer = make_optimizer({"blocks.0.x.lora_A": weight}, config, 1.0)
    for gradient in gradients:
        weight.grad = gradient.clone()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_([weight], config.clip_norm)
        optimizer.step()
    return weight.detach().abs()


SETTINGS: list[dict[str, Any]] = [
    {"optimizer": "adamw", "beta1": 0.5},
    {"optimizer": "adamw", "beta1": 0.9},
    {"optimizer": "adam", "beta1": 0.0},
    {"optimizer": "adagrad"},
    {"optimizer": "sgd", "clip_norm": 0.5, "momentum": 0.9},
]


@pytest.mark.parametrize("given", SETTINGS)
def test_no_gradients_move_an_entry_beyond_the_bound(given: dict[str, Any]):
    config = TrainingConfig(**given)
    draw = torch.Generator().manual_seed(0)
    sizes = 10 ** (8 * torch.rand(STEPS, 400, generator=draw, dtype=torch.float64) - 4)
    gradients = sizes * torch.randn(STEPS, 400, generator=draw, dtype=torch.float64)
    gradients[:, :200] = gradients[:, :200].abs()  # all in one direction
    bound = step_sum(config, STEPS)
    assert bound is not None
    assert float(moved(gradients, config).max()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_a_step_of_adam_reaches_its_bound(beta1: float):
    config = TrainingConfig(optimizer="adam", beta1=beta1)
    growth = BETA2 / beta1  # the worst gradients grow by this factor from step to step
    gradients = torch.tensor([[growth**t] for t in range(STEPS)], dtype=torch.float64)
    last = moved(gradients, config) - moved(gradients[:-1], config)
    sums = step_sum(config, STEPS), step_sum(config, STEPS - 1)
    assert sums[0] is not None
    assert sums[1] is not None
    assert float(last) == pytest.approx(sums[0] - sums[1], rel=1e-6)


def test_sgd_reaches_its_bound():
    config = TrainingConfig(optimizer="sgd", clip_norm=0.5, momentum=0.9)
    gradients = torch.full((STEPS, 1), 7.0, dtype=torch.float64)
    assert float(moved(gradients, config)) == pytest.approx(step_sum(config, STEPS), rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "nadam"},
        {"optimizer": "sgd"},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_where_no_bound_is_derived_none_is_claimed(given: dict[str, Any]):
    config = TrainingConfig(**given)
    assert step_sum(config, 3) is None
    with pytest.raises(ValueError, match="no bound is known"):
        reach(config, 4, 2, 3, 1.0)


def test_before_the_first_round_nothing_has_moved():
    assert reach(TrainingConfig(), rounds=5, done=0, steps=9, factor=1.0) == 0


def test_tensors_at_their_start_may_differ_by_rounding_alone():
    start = torch.tensor([0.5, -0.25])
    nearest = torch.nextafter(start, torch.tensor(math.inf))
    assert excess(nearest, start, 0.0, 0)[0] == 0
    assert excess(start + 1e-5, start, 0.0, 0)[0] > 0


def test_zeros_at_their_start_must_be_zeros():
    assert excess(torch.full((3,), 1e-30), torch.zeros(3), 0.0, 0)[0] > 0


@pytest.mark.parametrize(("entry", "within"), [(1.4, True), (1.6, False), (math.nan, False)])
def test_an_entry_out_of_reach_is_found(entry: float, within: bool):
    start = torch.ones(3, 2)
    tensor = start.clone()
    tensor[1, 1] = entry
    away, allowed = excess(tensor, start, 0.5, 10)
    assert (away == 0) == within
    assert allowed == pytest.approx(0.5, rel=1e-2)
