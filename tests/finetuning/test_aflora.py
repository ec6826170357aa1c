"""AFLoRA freezes matrices by their scores, never thaws them, and sends only what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.aflora import AFLoRA
from fl_vitlora.finetuning.importance import below
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.state import State, count
from tests.conftest import random_vit

ALL = ("q", "k", "v", "proj", "fc1", "fc2")


def method(**options: Any) -> Method:
    return Method(name="aflora", parts=(("aflora", AFLoRA(**options)),))


def exchanged(**options: Any) -> State:
    model = random_vit().model
    methods.attach(model, method(**options), 0)
    return methods.export_state(model)


def test_the_vectors_remain_when_all_matrices_are_frozen():
    """A ViT-S/14 sends 904,320 bytes at first and 167,040 in the end (12 equal blocks)."""
    model = timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=28, num_classes=10)
    methods.attach(model, method(targets=ALL), 0)
    state = {n: t for n, t in methods.export_state(model).items() if not n.startswith("head")}
    vectors = {n: t for n, t in state.items() if n.endswith((".low", ".up"))}
    assert 12 * 4 * count(state) == 904_320
    assert 12 * 4 * count(vectors) == 167_040


@pytest.mark.parametrize(
    ("remaining", "frozen"), [(1.0, []), (0.5, ["a"]), (0.3, ["a", "b"]), (0.0, ["a", "b", "c"])]
)
def test_matrices_below_the_threshold_of_all_entries_are_frozen(
    remaining: float, frozen: list[str]
):
    """Entries 1 1 2 2 9 9: the third is 2, so a alone has a mean below; the fifth is 9."""
    scores = {n: torch.full((2,), s) for n, s in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    remaining = remaining if remaining != 0.3 else 1 / 6
    assert below(scores, remaining) == frozen


def test_a_frozen_matrix_stays_frozen_and_in_the_end_all_are():
    aflora, state, memory, seen = method(targets=ALL), exchanged(targets=ALL), State(), set[str]()
    matrices = {name for name in state if name.endswith((".lora_A", ".lora_B"))}
    assert len(matrices) == 6 * 2 * 2
    draw = torch.Generator().manual_seed(0)
    for number in range(1, 21):
        resting = set(aflora.rests(number, memory))
        assert seen <= resting <= matrices
        seen = resting
        after = {
            n: t if n in resting else t + torch.randn(t.shape, generator=draw) / number
            for n, t in state.items()
        }
        known = Aggregated(round=number, rounds=20, before=state, after=after)
        changed, memory = aflora.decide(known, memory)
        assert not changed
        state = after
        if number == 1:
            assert not aflora.rests(2, memory)
        if number >= 10:
            assert set(aflora.rests(number + 1, memory)) == matrices


def test_the_matrix_that_moves_least_freezes_first():
    aflora, state = method(targets=ALL, begin=0.0, end=1.0), exchanged(targets=ALL)
    slow = "blocks.3.mlp.fc1.adapters.fc1.lora_A"
    draw = torch.Generator().manual_seed(0)
    steps = {n: torch.randn(t.shape, generator=draw) for n, t in state.items()}
    after = {n: t + (0.001 if n == slow else 1.0) * steps[n] for n, t in state.items()}
    _, memory = aflora.decide(Aggregated(round=1, rounds=40, before=state, after=after), {})
    assert aflora.rests(2, memory) == (slow,)


def test_with_exact_only_the_output_vectors_are_trained():
    names = exchanged(targets=ALL, exact=True)
    assert all(name.endswith(".up") or name.startswith("head") for name in names)


def test_square_slices_send_only_vectors():
    assert not [n for n in exchanged(targets=("q", "proj")) if n.endswith((".lora_A", ".lora_B"))]
