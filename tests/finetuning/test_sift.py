"""SIFT trains the chosen entries alone, and with all entries chosen it is full fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_vitlora.errors import UserError
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.server_method import after_round
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.sift import SIFT, SIFTAdapter
from fl_vitlora.state import State
from tests.conftest import random_vit

SLICE = "blocks.1.attn.qkv.adapters.v"


def method(**options: Any) -> Method:
    return Method(name="sift", parts=(("sift", SIFT(**options)),))


def attached(**options: Any) -> Any:
    model = random_vit().model
    methods.attach(model, method(**options), 0)
    return model


def round_of(sift: Method, model: GlobalModel, number: int, moved: State) -> GlobalModel:
    """A round of one client that moves the trained tensors."""
    resting = sift.rests(number, model.memory)
    aggregated = GlobalModel(
        tensors={
            n: t if n.endswith(resting) else t + moved.get(n, 0) for n, t in model.tensors.items()
        },
        memory=model.memory,
    )
    return after_round(sift, model, aggregated, number, 9)


def drawn(state: State) -> State:
    draw = torch.Generator().manual_seed(5)
    return {name: torch.randn(t.shape, generator=draw) for name, t in state.items()}


@pytest.mark.parametrize(("share", "expected"), [(0.008, 74), (0.5, 4609), (1.0, 9216)])
def test_a_slice_trains_as_many_entries_as_the_paper_says(share: float, expected: int):
    """k = int(ρ·9216) + 1, and never more than all."""
    assert len(SIFTAdapter(torch.zeros(96, 96), share).values) == expected


def test_the_largest_changes_of_the_first_round_are_chosen_and_kept():
    sift, model = method(share=0.01), attached(share=0.01)
    start = GlobalModel(tensors=methods.export_state(model))
    moved = drawn(start.tensors)
    after = round_of(sift, start, 1, moved)
    dense = moved[f"{SLICE}.dense"].flatten()
    places = after.tensors[f"control:{SLICE}.places"].long()
    others = torch.ones(len(dense), dtype=torch.bool)
    others[places] = False
    assert dense[places].abs().min() >= dense[others].abs().max()
    assert torch.equal(after.tensors[f"{SLICE}.values"], dense[places])
    assert not after.tensors[f"{SLICE}.dense"].any()


def test_later_rounds_neither_choose_again_nor_touch_other_entries():
    sift, model = method(share=0.01), attached(share=0.01)
    first = GlobalModel(tensors=methods.export_state(model))
    second = round_of(sift, first, 1, drawn(first.tensors))
    third = round_of(sift, second, 2, drawn(first.tensors))
    places = f"control:{SLICE}.places"
    assert torch.equal(second.tensors[places], third.tensors[places])
    assert not torch.equal(second.tensors[f"{SLICE}.values"], third.tensors[f"{SLICE}.values"])
    methods.load_state(model, third.tensors)
    methods.merge(model)
    before: Any = random_vit().model
    plain, merged = (m.blocks[1].attn.qkv.weight.detach() for m in (before, model))
    changed = (plain != merged).flatten().nonzero().flatten()
    assert set(changed.tolist()) <= {192 * 96 + int(p) for p in third.tensors[places]} | {
        int(p) for p in third.tensors["control:blocks.1.attn.qkv.adapters.q.places"]
    }
    assert len(changed) > 150  # 93 in each of q and v, of which hardly any is moved by nothing


def test_with_all_entries_sgd_is_full_fine_tuning_of_the_slices():
    """Five steps in float64: two in the dense first round, three in the sparse second one."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 16, 16, generator=draw, dtype=torch.float64)
    model = attached(share=1.0, targets=("proj",)).double()
    full: Any = random_vit().model.double()
    for parameter in full.parameters():
        parameter.requires_grad_(False)
    weights = [block.attn.proj.weight.requires_grad_() for block in full.blocks]

    def train(network: Any, trained: list[Any], steps: int) -> None:
        optimizer = torch.optim.SGD(trained, lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()

    sift = method(share=1.0, targets=("proj",))
    start = GlobalModel(tensors=methods.export_state(model))
    for number, steps in ((1, 2), (2, 3)):
        resting = sift.rests(number, start.memory)
        own = methods.trainable(model)
        train(
            model,
            [p for n, p in own.items() if not n.endswith(resting) and "head" not in n],
            steps,
        )
        aggregated = GlobalModel(tensors=methods.export_state(model), memory=start.memory)
        start = after_round(sift, start, aggregated, number, 2)
        methods.load_state(model, start.tensors)
    train(full, weights, 5)
    methods.merge(model)
    for block, expected in zip(model.blocks, weights, strict=True):
        assert torch.allclose(block.attn.proj.weight, expected, atol=1e-12, rtol=0)


def test_a_slice_whose_places_float32_cannot_number_is_refused():
    with pytest.raises(UserError, match="expected at most 16777216"):
        SIFTAdapter(torch.empty(2**24 + 1, 1, device="meta"), 0.001)
