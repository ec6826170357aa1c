"""A tuner trains the same numbers here as with peft's own `get_peft_model`, and merges cleanly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config import FineTuningConfig, TrainingConfig
from fl_vitlora.finetuning import methods, peft_tuners
from fl_vitlora.finetuning.groups import path_of
from fl_vitlora.rng import derive_seed
from fl_vitlora.testing.method_subject import images
from fl_vitlora.training.optimizers import make_optimizer
from tests.conftest import random_vit

peft = pytest.importorskip("peft")
RATE = 0.02


def descend(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes three steps on eight images, in float64."""
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images(8).double()), torch.arange(8)).backward()
        optimizer.step()


def ours(tuner: str, **parameters: Any) -> nn.Module:
    """Trains a tuner as this project does."""
    model = random_vit().model
    config = FineTuningConfig(method=f"peft:{tuner}", parameters=parameters)
    methods.prepare(model, config, 0)
    model.double().train()
    trained, training = methods.trainable(model), TrainingConfig(beta1=0.9)
    descend(model, make_optimizer(trained, training, RATE, methods.rates(model)))
    return model


def theirs(tuner: str) -> dict[str, Tensor]:
    """Trains a tuner with peft alone; returns the trained tensors by their names in the model."""
    model = random_vit().model
    kind = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[tuner]
    config = kind(target_modules=[f"blocks.{block}.attn.qkv" for block in range(6)])
    torch.manual_seed(derive_seed(0, f"peft:{tuner}"))
    wrapped = peft.get_peft_model(model, config)
    tuned = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    wrapped.double().train()
    head = dict(model.head.requires_grad_().named_parameters())  # type: ignore[union-attr]
    rate = RATE * peft_tuners.RATES.get(tuner, 1.0)
    groups = [{"params": [*tuned.values()], "lr": rate}, {"params": [*head.values()], "lr": RATE}]
    descend(wrapped, torch.optim.AdamW(groups, weight_decay=0.0, fused=True))
    names = {name.removeprefix("base_model.model."): p for name, p in tuned.items()}
    return names | {f"head.{name}": p for name, p in head.items()}


@pytest.mark.parametrize("tuner", [*peft_tuners.RATES, "LORA"])
def test_three_steps_give_the_same_bits_as_with_peft_alone(tuner: str):
    model, expected = ours(tuner), theirs(tuner)
    found = {path_of(name): p for name, p in methods.trainable(model).items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_scaling_of_25_needs_a_rate_that_is_25_times_smaller():
    """AdamW's steps do not depend on the scale of a gradient; so the scaling must be undone.

    Entries whose gradient is as small as AdamW's ε differ a little: 0.1 % of the whole change.
    """
    weights = []
    for parameters in ({}, {"scaling": 1.0, "tuner_rate": 1.0}, {"tuner_rate": 1.0}):
        model = ours("WAVEFT", **parameters)
        methods.merge(model)
        weights.append(model.get_parameter("blocks.0.attn.qkv.weight").detach())
    start = random_vit().model.get_parameter("blocks.0.attn.qkv.weight").detach().double()
    moved, same, far = (weight - start for weight in weights)
    assert (moved - same).norm() < 0.01 * same.norm()
    assert far.norm() > 10 * moved.norm() > 0
