"""Computes the aggregation gap of a method for two made-up clients."""

from __future__ import annotations

from typing import Any

import torch

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.federation.aggregation_gap import aggregation_gap, places_of
from fl_vitlora.finetuning import methods
from fl_vitlora.strategy import Update
from tests.conftest import random_vit


def gap_of(method: str, *, spread: float, **parameters: Any) -> float:
    """Returns the gap of the plain average of two clients, in float64.

    Args:
        method: The name of the method.
        spread: The size of the difference between the clients. If it is 0, they are equal.
        parameters: The values of the method's own parameters.
    """
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method=method, parameters=parameters), 0)
    before = {name: t.double() for name, t in methods.export_state(model).items()}
    torch.manual_seed(1)
    common = {name: 0.1 * torch.randn_like(tensor) for name, tensor in before.items()}
    deltas = [
        {name: t + spread * torch.randn_like(t) for name, t in common.items()} for _ in range(2)
    ]
    updates = [Update(client=c, samples=1, loss=0.0, delta=d) for c, d in enumerate(deltas)]
    new = {name: t + (deltas[0][name] + deltas[1][name]) / 2 for name, t in before.items()}
    gap = aggregation_gap(places_of(model), before, updates, new)
    assert gap is not None
    return gap
