"""LoRA+ is LoRA, except that B learns faster than A."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_vitlora.config import FineTuningConfig, TrainingConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.state import State
from fl_vitlora.testing.method_subject import images
from fl_vitlora.training.optimizers import make_optimizer
from tests.finetuning.moved_model import moved


def step(method: str, **finetuning: Any) -> tuple[State, State]:
    """Returns the trained tensors before and after one step of gradient descent."""
    model = moved(method, **finetuning)
    methods.load_state(model, methods.export_state(moved("lora")))
    before, config = methods.export_state(model), TrainingConfig(optimizer="sgd", momentum=0.0)
    optimizer = make_optimizer(methods.trainable(model), config, 0.01, methods.rates(model))
    model(images().double()).square().sum().backward()
    optimizer.step()
    return before, methods.export_state(model)


def test_b_has_the_ratio_times_the_rate_of_a():
    """With ratio 9, B moves three times as far in a step as in LoRA, and A a third as far."""
    start, slow = step("lora")
    _, fast = step("lora_plus", parameters={"ratio": 9.0})
    factors = {"lora_A": 1 / 3, "lora_B": 3.0}
    for name, tensor in start.items():
        moves = slow[name] - tensor, fast[name] - tensor
        factor = factors.get(name.rpartition(".")[2], 1.0)
        assert torch.allclose(moves[1], factor * moves[0], atol=1e-12, rtol=0)
        assert moves[0].any()


def test_strategies_treat_it_as_lora():
    method = method_of(FineTuningConfig(method="lora_plus+patch_embed"))
    assert method.low_rank
    assert method.stackable
    assert methods.trainable(moved("lora_plus")).keys() == methods.trainable(moved("lora")).keys()


@pytest.mark.parametrize("name", ["lora_plus", "rslora"])
def test_a_strategy_that_needs_the_matrix_of_lora_xs_refuses_it(name: str):
    with pytest.raises(UserError, match=rf"method {name}: .* matrix R .*choose --method lora"):
        method_of(FineTuningConfig(method=f"{name}+patch_embed"), "lora_xs")
