"""What a strategy of this project may say beside its plan, through the aggregator of the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import strategies
from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, LOCAL_EPOCHS, SERVER_ROUND
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, RoundContext, RoundResult, Strategy, Update, averaged

MODEL = GlobalModel(tensors={"a.weight": torch.zeros(2), "b.weight": torch.ones(2)})
CONFIG = {SERVER_ROUND: 1, LEARNING_RATE: 0.5}
LATE = Failure.of(1, 2, "no reply within 1 s")


def update_of(client: int, number: float = 1.0) -> Update:
    delta = {name: torch.full((2,), number) for name in MODEL.tensors}
    return Update(client=client, samples=client + 1, loss=0.5, delta=delta)


@dataclass(frozen=True, kw_only=True)
class Mean(Strategy):
    def aggregate(self, model: State, updates: Sequence[Update], state: State) -> Any:
        return averaged(model, updates), state


class Curious(Mean):
    """Keeps in its state what it is told of a round."""

    def aggregate(
        self,
        model: State,
        updates: Sequence[Update],
        state: State,
        context: RoundContext | None = None,
    ) -> Any:
        assert context is not None
        told = {
            "round": torch.tensor(context.round),
            "participants": torch.tensor(context.participants),
            "failed": torch.tensor(sorted(context.failures)),
        }
        assert all(reason == LATE.reason for reason in context.failures.values())
        return averaged(model, updates), state | told

    def plan(self, server_round: int, *, state: State | None = None) -> ClientPlan:
        return ClientPlan(frozen=("a.weight",) if state else ())


def test_aggregate_is_told_of_the_round_and_its_failures_and_plan_of_the_state():
    aggregator = OwnAggregator(Curious())
    (first, _) = aggregator.instruct(1, MODEL, [0, 2], CONFIG)
    assert first.plan.frozen == ()
    aggregator.aggregate(1, MODEL, [update_of(0)], [LATE])
    kept, _ = aggregator.snapshot()
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {
        "round": 1,
        "participants": [0, 2],
        "failed": [2],
    }
    (second,) = aggregator.instruct(2, MODEL, [0], CONFIG)
    assert second.plan.frozen == ("a.weight",)


class Uneven(Mean):
    """Gives every client work of its own."""

    def plan(self, server_round: int, *, client: int = 0) -> ClientPlan:
        return ClientPlan(epochs=client + 1, rate=1 / (client + 1))


def test_clients_can_be_given_epochs_and_rates_of_their_own():
    asked = OwnAggregator(Uneven()).instruct(1, MODEL, [0, 3], CONFIG)
    assert [one.config[LOCAL_EPOCHS] for one in asked] == [1, 4]
    assert [one.config[LEARNING_RATE] for one in asked] == [0.5, 0.125]
    (plain,) = OwnAggregator(Mean()).instruct(1, MODEL, [0], CONFIG)
    assert plain.config == CONFIG


@dataclass(frozen=True, kw_only=True)
class Planned(Mean):
    first: ClientPlan
    others: ClientPlan

    def plan(self, server_round: int, *, client: int = 0) -> ClientPlan:
        return self.others if client else self.first


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"frozen": ("a.weight",)}, "round 1: plan returned different plans for the clients"),
        ({"epochs": 0}, r"plan\.epochs must be a whole number from 1, or None; got 0"),
        ({"epochs": 1.5}, r"plan\.epochs must be .* got 1\.5"),
        ({"rate": -1.0}, r"plan\.rate must be a positive factor .* got -1\.0"),
        ({"rate": math.inf}, r"plan\.rate must be .* got inf"),
    ],
)
def test_a_plan_that_no_round_can_follow_is_refused(changed: dict[str, Any], told: str):
    strategy = Planned(first=ClientPlan(), others=replace(ClientPlan(), **changed))
    with pytest.raises(UserError, match=told):
        OwnAggregator(strategy).instruct(1, MODEL, [0, 1], CONFIG)


@dataclass(frozen=True, kw_only=True)
class Choosing(Mean):
    chosen: Any

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int], state: State
    ) -> Sequence[int]:
        return self.chosen  # type: ignore[no-any-return]


def test_a_strategy_chooses_the_participants_and_the_draw_stays_without_it():
    assert OwnAggregator(Choosing(chosen=(5, 2))).select(1, [0, 1], range(9)) == [2, 5]
    assert OwnAggregator(Mean()).select(1, [0, 1], range(9)) == [0, 1]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ((1,), "select returned 1 different clients, expected 2"),
        ((1, 1), "select returned 1 different clients, expected 2"),
        ((1, 2, 3), "select returned 3 different clients, expected 2"),
        ((1, 9), "select returned client 9, but the run has no client of this number"),
        (None, "round 4: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_choice_of_others_than_so_many_clients_is_refused(chosen: Any, told: str):
    with pytest.raises(UserError, match=told):
        OwnAggregator(Choosing(chosen=chosen)).select(4, [0, 1], range(9))


@dataclass(frozen=True, kw_only=True)
class Counting(Mean):
    """Reports numbers of its own."""

    wrong: Any = None

    def metrics(
        self, model: State, updates: Sequence[Update], state: State
    ) -> Mapping[str, float | Mapping[int, float]]:
        if self.wrong is not None:
            return self.wrong  # type: ignore[no-any-return]
        return {
            "mean": float(model["a.weight"].mean()),
            "loss": {update.client: update.loss for update in updates},
            "unknown": math.nan,
        }


def test_metrics_of_a_strategy_are_those_of_its_round_by_client():
    aggregator = OwnAggregator(Counting())
    assert aggregator.metrics() == {}
    aggregator.aggregate(1, MODEL, [update_of(0, 2.0), update_of(3, 2.0)], [])
    assert aggregator.metrics() == {"mean": 2.0, "loss": {"0": 0.5, "3": 0.5}, "unknown": None}


@pytest.mark.parametrize("wrong", [{"names": "many"}, {"by client": {"first": 1.0}}, 3])
def test_metrics_that_are_no_numbers_are_refused(wrong: Any):
    with pytest.raises(UserError, match="Counting, round 1: "):
        OwnAggregator(Counting(wrong=wrong)).aggregate(1, MODEL, [update_of(0)], [])


@dataclass(frozen=True, kw_only=True)
class Ending(Mean):
    answer: Any

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        return self.answer  # type: ignore[no-any-return]


def test_only_a_strategy_that_can_end_a_run_is_asked():
    result = RoundResult(accuracy=0.5, loss=1.0, train_loss=1.0, participants=(0,))
    assert not OwnAggregator(Mean()).may_stop
    assert OwnAggregator(Ending(answer=True)).may_stop
    assert OwnAggregator(Ending(answer=True)).should_stop(1, result) is True
    with pytest.raises(UserError, match="should_stop returned 1, expected True or False"):
        OwnAggregator(Ending(answer=1)).should_stop(1, result)


def test_a_merged_pair_of_zeros_is_dropped() -> None:
    """If a pair rests in a round, its stack of matrices B may still be zero."""
    tensors = {"a.lora_A": torch.ones(1, 3), "a.lora_B": torch.zeros(2, 1)}
    before = GlobalModel(tensors=tensors)
    still = Update(client=0, samples=1, loss=0.0, delta={})
    moved = Update(client=0, samples=1, loss=0.0, delta={"a.lora_B": torch.ones(2, 1)})
    flora = strategies.load("flora", {})
    assert isinstance(flora, Strategy)
    assert OwnAggregator(flora).aggregate(1, before, [still], []).rounds == 0
    after = OwnAggregator(flora).aggregate(1, before, [moved], [])
    assert (after.rounds, after.increments["a"].tolist()) == (1, [[1.0] * 3] * 2)
