"""SaRA trains the smallest entries alone, stops those that grow, and penalises a high rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.sara import SaRA, SaRAAdapter
from tests.conftest import random_vit


def weight_of(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(80, 70, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.003, 0.1, 1.0])
def test_the_entries_are_the_share_with_the_smallest_magnitude(share: float):
    weight = weight_of()
    adapter = SaRAAdapter(weight, share)
    inside = torch.zeros(weight.numel(), dtype=torch.bool)
    inside[adapter.places] = True
    assert abs(len(adapter.places) - share * weight.numel()) <= 1
    if not inside.all():
        assert weight.flatten()[inside].abs().max() < adapter.threshold
        assert weight.flatten()[~inside].abs().min() == adapter.threshold


def test_two_parties_find_the_same_entries_and_send_no_place():
    states, places = [], []
    for _ in range(2):
        model = random_vit().model
        methods.attach(model, Method(name="sara", parts=(("sara", SaRA()),)), 0)
        states.append(methods.export_state(model))
        places.append({n: b for n, b in model.named_buffers() if n.endswith(".places")})
    assert all(torch.equal(places[1][name], own) for name, own in places[0].items())
    assert len(places[0]) == 12
    endings = {name.rpartition(".")[2] for name in states[0] if not name.startswith("head")}
    assert endings == {"values", "stops"}


def test_other_entries_keep_their_bits():
    weight = weight_of()
    adapter = SaRAAdapter(weight, 0.1).double()
    adapter.values.data.normal_(generator=torch.Generator().manual_seed(1))
    outside = torch.ones(weight.numel(), dtype=torch.bool)
    outside[adapter.places] = False
    changed = adapter.adapted(weight).flatten()
    assert torch.equal(changed[outside], weight.flatten()[outside])
    assert (changed[~outside] != weight.flatten()[~outside]).all()


def test_entries_that_have_grown_get_no_gradient_once_they_stop():
    weight = weight_of()
    adapter = SaRAAdapter(weight, 0.1).double()
    adapter.values.data[::3] = 10.0
    for stops in (0.0, 1.0):
        adapter.stops.data.fill_(stops)
        adapter.values.grad = None
        adapter.adapted(weight).sum().backward()
        assert adapter.values.grad is not None
        assert (adapter.values.grad[::3] == 1 - stops).all()
        assert (adapter.values.grad[1::3] == 1).all()


def test_the_server_lets_entries_stop_after_the_given_share_of_the_rounds():
    method = Method(name="sara", parts=(("sara", SaRA(switch=0.5)),))
    state = {"control:a.stops": torch.zeros(())}
    for number, stops in ((1, False), (4, False), (5, True), (6, True)):
        changed, _ = method.decide(
            Aggregated(round=number, rounds=10, before=state, after=state), {}
        )
        assert bool(changed) == stops
    known = {"control:a.stops": torch.ones(())}
    assert method.decide(Aggregated(round=7, rounds=10, before=known, after=known), {})[0] == {}


@pytest.mark.parametrize("nuclear", [0.0, 0.02, 0.2])
def test_the_penalty_is_the_nuclear_norm_of_the_slices_in_turn(nuclear: float):
    model: Any = random_vit().model
    part = SaRA(nuclear=nuclear, targets=("q", "v"))
    methods.attach(model, Method(name="sara", parts=(("sara", part),)), 0)
    layer = model.blocks[0].attn.qkv
    expected = []
    for name, (start, end) in layer.slices.items():
        alone = torch.zeros(96 * 96)
        places = layer.adapters[name].places
        alone[places] = layer.base.weight.detach()[start:end].flatten()[places]
        expected.append(nuclear * torch.linalg.matrix_norm(alone.view(96, 96), ord="nuc"))
    with part.watch(model) as term, torch.no_grad():
        found = [float(term(torch.zeros(1))) for _ in range(13)]
    assert found[:2] == pytest.approx([float(norm) for norm in expected], rel=1e-4)
    assert found[12] == found[0]  # twelve slices, then the first again


def test_a_larger_penalty_leaves_a_smaller_nuclear_norm():
    """A regression whose solution has full rank: the penalty pays with the error."""
    weight, target = weight_of(0), weight_of(1)
    norms = []
    for penalty in (0.0, 0.05, 0.5):
        adapter = SaRAAdapter(weight, 0.2).double()
        optimizer = torch.optim.SGD([adapter.values], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            error = (adapter.adapted(weight) - target).square().sum() / 2
            (error + penalty * adapter.nuclear_norm(weight)).backward()
            optimizer.step()
        norms.append(float(adapter.nuclear_norm(weight).detach()))
    assert norms == sorted(norms, reverse=True)
    assert norms[2] < 0.95 * norms[0]


def test_a_narrow_slice_has_no_penalty():
    model = nn.Sequential()
    with SaRA().watch(model) as term:
        assert term(torch.zeros(1)) == 0.0
