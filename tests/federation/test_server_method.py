"""The server freezes tensors for a method, restores some, and lets the method decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.federation.server_method import after_round, check_means, with_method
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated, Part
from fl_vitlora.state import State
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Counting(Part):
    """Moves a control tensor by one in every round, and rests another tensor from round 3 on."""

    control = (".index",)

    def trained(self, model: nn.Module) -> Collection[str]:
        return [name for name, _ in model.named_parameters()]

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        seen = int(memory["seen"]) if "seen" in memory else 0
        return (".value",) if seen >= 2 else ()

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        assert known.rounds == 9
        seen = torch.tensor(float(known.round))
        return {"a.index": known.before["a.index"] + 1}, {"seen": seen}


@dataclass(frozen=True, kw_only=True)
class Strange(Counting):
    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        return {"a.other": torch.zeros(1)}, {}


def method(*parts: Part) -> Method:
    return Method(name="m", parts=tuple((f"p{i}", part) for i, part in enumerate(parts)))


def start() -> GlobalModel:
    tensors = {"a.index": torch.tensor([16_777_215.0]), "a.value": torch.ones(2)}
    return GlobalModel(tensors=tensors)


def asked(model: GlobalModel) -> list[Instruction]:
    return [Instruction(client=client, model=model, config={}) for client in (0, 1)]


def test_a_control_tensor_rests_always_and_keeps_its_bits_in_the_aggregation():
    before = start()
    counting = method(Counting())
    for instruction in with_method(counting, 1, asked(before)):
        assert instruction.plan.frozen == (".index",)
    aggregated = GlobalModel(tensors={n: t * 1.0001 for n, t in before.tensors.items()})
    new = after_round(counting, before, aggregated, 1, 9)
    assert new.tensors["a.index"].tolist() == [16_777_216.0]
    assert torch.equal(new.tensors["a.value"], aggregated.tensors["a.value"])


def test_what_a_part_remembers_decides_what_rests():
    model, counting = start(), method(Counting())
    for number in (1, 2):
        assert with_method(counting, number, asked(model))[0].plan.frozen == (".index",)
        model = after_round(counting, model, model, number, 9)
    assert with_method(counting, 3, asked(model))[0].plan.frozen == (".index", ".value")
    restored = GlobalModel.restored(model.snapshot())
    assert with_method(counting, 3, asked(restored))[0].plan.frozen == (".index", ".value")


def test_parts_of_a_sum_have_memories_of_their_own():
    model = after_round(method(Counting(), Counting()), start(), start(), 1, 9)
    assert sorted(model.memory) == ["p0/seen", "p1/seen"]


def test_a_checkpoint_without_a_memory_is_still_read():
    tree = start().snapshot()
    del tree["memory"]
    assert GlobalModel.restored(tree).memory == {}


def test_a_tensor_that_the_model_lacks_cannot_be_decided():
    with pytest.raises(
        UserError, match=r"method m: decide returned tensor a\.other with shape \(1,\)"
    ):
        after_round(method(Strange()), start(), start(), 1, 9)


@dataclass(frozen=True, kw_only=True)
class Measuring(Counting):
    measured = (".value",)


@pytest.mark.parametrize(("found", "fits"), [(1.75, True), (1.7500001, True), (1.0, False)])
def test_a_strategy_that_changes_measured_means_is_refused(found: float, fits: bool):
    """Two clients with one and three images have measured 1 and 2; their mean is 1.75."""
    updates = [
        Update(client=c, samples=n, loss=0.0, delta={"a.value": torch.full((2,), moved)}, steps=1)
        for c, n, moved in [(0, 1, 0.0), (1, 3, 1.0)]
    ]
    tensors = start().tensors | {"a.value": torch.full((2,), found)}
    aggregated = GlobalModel(tensors=tensors)
    if fits:
        check_means(method(Measuring()), start(), updates, aggregated)
        return
    with pytest.raises(UserError, match=r"clients measure the tensor a\.value"):
        check_means(method(Measuring()), start(), updates, aggregated)
    check_means(method(Counting()), start(), updates, aggregated)
