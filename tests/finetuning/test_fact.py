"""FacT: the increments of all layers share two factors; each piece has a small core."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregation_gap import aggregation_gap, places_of
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.fact import FacT
from fl_vitlora.finetuning.slices import AdaptedLinear
from fl_vitlora.state import State, subtract
from fl_vitlora.strategy import Update
from tests.conftest import random_vit
from tests.finetuning.moved_model import merged_weights, moved, numbers_in_a_block_of_vit_b

ALL = ("q", "k", "v", "proj", "fc1", "fc2")


def increments(model: nn.Module) -> State:
    """Merges a model and returns by how much its weights differ from the pre-trained ones."""
    before, after = random_vit().model.double().state_dict(), merged_weights(model)
    return {n: t - before[n] for n, t in after.items() if "blocks" in n and n.endswith("weight")}


def test_the_pieces_of_each_weight_are_v_times_core_times_u():
    model = moved("fact", targets=ALL, parameters={"scale": 0.5})
    adapters = model.blocks[4].mlp.fc1.adapters["fc1"], model.blocks[4].mlp.fc2.adapters["fc2"]
    tall, wide = ([core.detach().clone() for core in adapter.core] for adapter in adapters)
    inner, outer = (t.detach().clone() for t in adapters[0].shared.parameters())
    found = increments(model)
    piece = [0.5 * outer @ core @ inner for core in tall]
    below = torch.cat(piece, dim=0)
    beside = torch.cat([0.5 * outer @ core @ inner for core in wide], dim=1)
    assert len(tall) == len(wide) == found["blocks.4.mlp.fc1.weight"].shape[0] // 96
    assert torch.allclose(found["blocks.4.mlp.fc1.weight"], below, atol=1e-13, rtol=0)
    assert torch.allclose(found["blocks.4.mlp.fc2.weight"], beside, atol=1e-13, rtol=0)


def test_the_increments_of_all_layers_together_have_the_rank_r():
    found = increments(moved("fact", rank=3))
    moving = [t for name, t in found.items() if "qkv" in name]
    assert len(moving) == 6
    assert int(torch.linalg.matrix_rank(torch.cat(moving), tol=1e-10)) == 3
    columns = torch.cat([t for whole in moving for t in (whole[:96], whole[192:])], dim=1)
    assert int(torch.linalg.matrix_rank(columns, tol=1e-10)) == 3


def test_the_factors_are_counted_and_sent_once():
    names = list(methods.trainable(moved("fact")))
    assert sum(name.endswith(("shared.inner", "shared.outer")) for name in names) == 2
    numbers = numbers_in_a_block_of_vit_b("fact", targets=ALL, rank=16)
    assert numbers == 2 * 768 * 16 + 12 * 16 * 16


def reported_gap(change: str, seeds: tuple[int, int]) -> float:
    """Returns the gap that a run reports if clients move the tensors with a text in the name."""
    model, start = moved("fact"), methods.export_state(moved("fact"))

    def client(number: int, seed: int) -> Update:
        state = methods.export_state(moved("fact", seed=seed))
        delta = subtract({n: state[n] if change in n else t for n, t in start.items()}, start)
        return Update(client=number, delta=delta, samples=10, loss=1.0)

    updates = [client(number, seed) for number, seed in enumerate(seeds)]
    mean = {n: t + sum(0.5 * u.delta[n] for u in updates) for n, t in start.items()}
    gap = aggregation_gap(places_of(model), start, updates, mean)
    assert gap is not None
    return gap


def test_averaging_is_biased_but_exact_for_cores_alone_and_for_equal_clients():
    """The shared factors of the first layer are seen in every other layer, too."""
    assert reported_gap("", (1, 2)) > 0.05
    assert reported_gap("shared.", (1, 2)) > 0.05
    assert reported_gap("core", (1, 2)) < 1e-12
    assert reported_gap("", (1, 1)) < 1e-12


def test_all_layers_have_the_same_factors():
    model = moved("fact", targets=ALL)
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    shared = {id(a.shared) for layer in layers for a in layer.adapters.values()}
    assert len(layers) == 6 * 4
    assert len(shared) == 1


def weight(outputs: int, inputs: int) -> Tensor:
    return torch.zeros(outputs, inputs)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="square pieces, but a weight has the shape 96 x 100"):
        FacT().adapter(weight(96, 100))
    with pytest.raises(UserError, match=r"finetuning\.rank 97"):
        FacT(rank=97).adapter(weight(96, 96))
    model = random_vit().model
    model.blocks[1].attn.qkv = nn.Linear(48, 144)  # type: ignore[index,union-attr]
    with pytest.raises(UserError, match=r"layers have the widths \[48, 96\]"):
        FacT().attach(model)
