"""Both kinds of strategies behind one interface, and what both are held to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flwr.serverapp.strategy as flower
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.client_records import Memory
from fl_vitlora.flower.server.composing import compose
from fl_vitlora.flower.strategies.aggregators import check_cohort, check_experiment
from fl_vitlora.flower.wire.round_message import Writer, read
from fl_vitlora.state import State, add
from fl_vitlora.strategy import ClientPlan, Strategy, Update
from tests.flower.played import (
    ADAPTIVE,
    CONFIG,
    FIXED,
    GLOBAL,
    LAYOUT,
    aggregator_of,
    load,
    play,
    same,
)


@pytest.mark.parametrize("rounds", [1, 3])
def test_flowers_fedavg_is_ours(rounds: int):
    theirs, ours = (
        play(aggregator_of(strategy), rounds)
        for strategy in (load("FedAvg"), strategies.load("fedavg", {}))
    )
    for name, tensor in ours.items():
        assert torch.allclose(theirs[name], tensor, atol=1e-6, rtol=0), name


def test_the_penalty_of_flowers_fedprox_reaches_the_clients():
    (sent,) = aggregator_of(load("FedProx")).instruct(1, GLOBAL, [3], CONFIG)
    content = Writer(LAYOUT).write(compose(sent, Memory(), frozenset()), None)
    assert read(content, LAYOUT, None).proximal_mu == 0.5


def test_a_plan_reaches_the_clients():
    class Halves(Strategy):
        def plan(self, server_round: int) -> ClientPlan:
            return ClientPlan(frozen=(".lora_A",) if server_round % 2 else ())

        def aggregate(self, model: State, updates: Any, state: State) -> tuple[State, State]:
            raise NotImplementedError

    aggregator = aggregator_of(Halves())
    assert aggregator.instruct(1, GLOBAL, [0], CONFIG)[0].plan.frozen == (".lora_A",)
    assert aggregator.instruct(2, GLOBAL, [0], CONFIG)[0].plan == ClientPlan()


def test_a_strategy_gets_back_the_state_that_it_returned():
    class Counting(Strategy):
        def aggregate(self, model: State, updates: Any, state: State) -> tuple[State, State]:
            rounds = state.get("rounds", torch.zeros(())) + 1
            return {n: torch.full_like(t, float(rounds)) for n, t in model.items()}, {
                "rounds": rounds
            }

    assert play(aggregator_of(Counting()), rounds=3)["head.bias"].tolist() == [3.0, 3.0, 3.0]


def test_a_strategy_of_ours_goes_on_from_a_snapshot():
    class Momentum(Strategy):
        def aggregate(
            self, model: State, updates: Sequence[Update], state: State
        ) -> tuple[State, State]:
            velocity = {n: t + 0.5 * state.get(n, 0) for n, t in updates[0].delta.items()}
            return add(model, velocity), velocity

    first, second = aggregator_of(Momentum()), aggregator_of(Momentum())
    model = play(first, rounds=2)
    tensors, plain = first.snapshot()
    second.restore(tensors, json.loads(json.dumps(plain)))
    assert same(play(second, 4, model, first=3), play(aggregator_of(Momentum()), 4))
    assert second.privacy() is None


class Losing(Strategy):
    def aggregate(self, model: State, updates: Any, state: State) -> tuple[State, State]:
        return {n: t for n, t in model.items() if n != "head.bias"}, state


class FlowerLosing(flower.FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord({n: a for n, a in arrays.items() if n != "head.bias"}), metrics


@pytest.mark.parametrize("strategy", [Losing(), FlowerLosing()], ids=["ours", "flower's"])
def test_a_strategy_that_loses_a_tensor_is_refused(strategy: Strategy | flower.Strategy):
    with pytest.raises(ValueError, match=r"head\.bias"):
        play(aggregator_of(strategy), rounds=1)


@pytest.mark.parametrize("name", ["min_available_nodes", "min_train_nodes"])
def test_a_strategy_that_would_wait_forever_is_refused(name: str):
    strategy = load("FedAvg", **{name: 5})
    check_cohort(strategy, participants=5)
    with pytest.raises(UserError, match=rf"strategy\.{name} 5: only 4 clients take part"):
        check_cohort(strategy, participants=4)


@pytest.mark.parametrize("share", [-0.5, 1.5, 5.0])
def test_a_share_of_the_participants_is_one(share: float):
    with pytest.raises(UserError, match=rf"strategy\.fraction_train: .* \[0, 1\], got {share}"):
        check_cohort(load("FedAvg", fraction_train=share), participants=4)


def test_a_strategy_in_a_wrapper_that_would_wait_forever_is_refused():
    wrapper = load(
        "DifferentialPrivacyServerSideFixedClipping", strategy={"min_available_nodes": 5}
    )
    with pytest.raises(UserError, match=r"strategy\.strategy\.min_available_nodes 5: only 4"):
        check_cohort(wrapper, participants=4)


@pytest.mark.parametrize("name", [*FIXED, *ADAPTIVE])
@pytest.mark.parametrize(
    ("options", "participants", "trained"),
    [
        ({"num_sampled_clients": 20}, 4, 4),
        ({}, 5, 5),
        ({"strategy": {"fraction_train": 0.5}}, 4, 2),
        ({"strategy": {"fraction_train": 0.5, "min_train_nodes": 3}}, 4, 3),
    ],
)
def test_noise_is_scaled_by_the_clients_that_train(
    name: str, options: dict[str, Any], participants: int, trained: int
):
    told = rf"--set strategy\.num_sampled_clients={trained}$"
    with pytest.raises(UserError, match=told):
        check_cohort(load(name, **options), participants)
    check_cohort(load(name, **{**options, "num_sampled_clients": trained}), participants)


def test_our_strategies_wait_for_nobody():
    check_cohort(strategies.load("fedavg", {}), participants=1)


@dataclass(frozen=True, kw_only=True)
class Faulty(Strategy):
    """A strategy with faults of its author's own."""

    endings: Any = ()

    def plan(self, server_round: int) -> ClientPlan:
        del server_round
        return ClientPlan(frozen=self.endings)

    def aggregate(self, model: State, updates: Sequence[Update], state: State) -> Any:
        return model["no such tensor"], state


def test_a_fault_in_a_strategy_is_told_with_its_place():
    aggregator = OwnAggregator(Faulty())
    with pytest.raises(UserError, match=r"Faulty, round 3: KeyError: .*test_aggregators\.py, line"):
        aggregator.aggregate(3, GLOBAL, [], [])


@pytest.mark.parametrize(
    ("endings", "told"),
    [((".loraA",), r"'\.loraA'; did you mean '\.lora_A'"), (".lora_A", "must be a tuple")],
)
def test_a_plan_that_freezes_nothing_by_mistake_is_refused(endings: Any, told: str):
    with pytest.raises(UserError, match=told):
        OwnAggregator(Faulty(endings=endings)).instruct(1, GLOBAL, [0], {})


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "krum",
            {"strategy.f": 2, "clients": 6},
            r"2f \+ 3 clients or more in a round, got 6: .* strategy\.f=1",
        ),
        ("multi_krum", {"strategy.f": 9}, r"in a round, got 20: --set strategy\.f=8"),
        ("krum", {"strategy.f": 6, "fraction": 0.5}, "in a round, got 10"),
        ("trimmed_mean", {"strategy.beta": 0.04}, "no value is left out; set at least .*=0.05"),
        ("fednova", {"training.optimizer": "sgd"}, r"momentum 0\.9, .* strategy\.momentum=0\.9"),
    ],
)
def test_what_a_strategy_objects_to_is_refused(name: str, given: dict[str, Any], told: str):
    config = configuration.load(None, {"strategy": name, **given})
    with pytest.raises(UserError, match=f"strategy {name}: .*{told}") as caught:
        check_experiment(strategies.load_for(config), config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", strategies.available())
def test_no_strategy_objects_to_the_default_job(name: str):
    config = configuration.load(None, {"strategy": name})
    check_experiment(strategies.load_for(config), config)


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({"clients": 20}, 20),
        ({"clients": 20, "fraction": 0.25}, 5),
        (
            {
                "clients": 20,
                "strategy": "flwr.serverapp.strategy:FedAvg",
                "strategy.fraction_train": 0.5,
            },
            10,
        ),
    ],
    ids=["all", "a fraction", "half of them by a strategy of Flower"],
)
def test_more_updates_than_clients_train_are_never_waited_for(given: dict[str, Any], trained: int):
    enough = configuration.load(None, {"encryption.steps": [], "min_clients": trained, **given})
    strategy = strategies.load_for(enough)
    check_experiment(strategy, enough)
    with pytest.raises(UserError) as caught:
        check_experiment(strategy, replace(enough, min_clients=trained + 1))
    assert str(caught.value) == (
        f"min_clients {trained + 1}: only {trained} clients train in a round; take at most "
        f"{trained}, or raise --clients or --fraction"
    )


def test_fednova_takes_the_momentum_that_it_is_told():
    told = {"training.optimizer": "sgd", "strategy.momentum": 0.9}
    config = configuration.load(None, {"strategy": "fednova", **told})
    check_experiment(strategies.load_for(config), config)
