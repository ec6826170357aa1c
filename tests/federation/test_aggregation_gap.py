"""The aggregation gap is zero for linear methods, and what one computes by hand for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.federation.aggregation_gap import aggregation_gap, places_of
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.dora import DoRA
from fl_vitlora.finetuning.lora_part import LoRA
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart
from fl_vitlora.state import State
from fl_vitlora.strategy import Update
from tests.conftest import random_vit


class Scaled(SliceAdapter):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(len(weight)))

    def adapted(self, weight: Tensor) -> Tensor:
        return self.gain.unsqueeze(-1) * weight


@dataclass(frozen=True, kw_only=True)
class Scaling(SlicePart):
    def adapter(self, weight: Tensor) -> Scaled:
        return Scaled(weight)


def attached(part: Part) -> Any:
    model = random_vit().model
    methods.attach(model, Method(name="part", parts=(("part", part),)), 0)
    return model


def updates_of(start: State, seeds: Sequence[int], sizes: Sequence[int]) -> list[Update]:
    found = []
    for client, (seed, size) in enumerate(zip(seeds, sizes, strict=True)):
        draw = torch.Generator().manual_seed(seed)
        delta = {n: 0.1 * torch.randn(t.shape, generator=draw) for n, t in start.items()}
        found.append(Update(client=client, samples=size, loss=0.0, delta=delta))
    return found


def averaged(start: State, updates: Sequence[Update]) -> State:
    total = sum(update.samples for update in updates)
    moved = {n: sum(u.samples * u.delta[n].double() for u in updates) / total for n in start}
    return {name: (tensor.double() + moved[name]).float() for name, tensor in start.items()}


def test_a_linear_method_has_no_gap():
    model = attached(Scaling(targets=("q", "fc1")))
    start = methods.export_state(model)
    updates = updates_of(start, (1, 2, 3), (5, 2, 9))
    gap = aggregation_gap(places_of(model), start, updates, averaged(start, updates))
    assert gap is not None
    assert gap < 1e-6


def test_a_method_that_is_not_linear_has_the_gap_of_its_weights():
    """The expected gap comes from models that hold the tensors of one client each."""
    model = attached(DoRA(targets=("v", "proj")))
    start = methods.export_state(model)
    updates = updates_of(start, (1, 2), (1, 3))
    new = averaged(start, updates)

    def weights(state: State) -> Tensor:
        whole = attached(DoRA(targets=("v", "proj"))).double()
        methods.load_state(whole, state)
        methods.merge(whole)
        blocks = whole.blocks
        return torch.cat([torch.cat([b.attn.qkv.weight, b.attn.proj.weight]) for b in blocks])

    ends = [weights({n: t + u.delta[n] for n, t in start.items()}) for u in updates]
    mean = (ends[0] + 3 * ends[1]) / 4
    expected = (mean - weights(new)).norm() / (mean - weights(start)).norm()
    gap = aggregation_gap(places_of(model), start, updates, new)
    assert expected > 0.01
    assert gap == pytest.approx(float(expected), rel=1e-5)


def test_equal_clients_have_no_gap():
    model = attached(DoRA())
    start = methods.export_state(model)
    updates = updates_of(start, (4, 4), (1, 7))
    gap = aggregation_gap(places_of(model), start, updates, averaged(start, updates))
    assert gap is not None
    assert gap < 1e-6


def test_without_adapted_weights_or_with_sums_alone_there_is_nothing_to_measure():
    model = attached(LoRA())
    start = methods.export_state(model)
    updates = updates_of(start, (1,), (1,))
    assert aggregation_gap(places_of(model), start, updates, averaged(start, updates)) is None
    model = attached(DoRA())
    start = methods.export_state(model)
    [update] = updates_of(start, (1,), (1,))
    mean = Update(client=-1, samples=2, loss=0.0, delta=update.delta, members=2)
    assert aggregation_gap(places_of(model), start, [mean], averaged(start, [mean])) is None
    still = Update(client=0, samples=2, loss=0.0, delta={n: 0 * t for n, t in start.items()})
    assert aggregation_gap(places_of(model), start, [still], start) is None
