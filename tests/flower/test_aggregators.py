"""Both kinds of strategies behind one interface; the twelve of Flower run unmodified."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flwr.serverapp.strategy as flower
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

import strategies
from fl_vitlora.communication.packing import Layout
from fl_vitlora.errors import UserError
from fl_vitlora.flower import messages
from fl_vitlora.flower.aggregators import (
    Aggregator,
    OwnAggregator,
    Participants,
    check_cohort,
    make_aggregator,
)
from fl_vitlora.flower.contents import Writer, read_instruction
from fl_vitlora.flower.holdings import Memory
from fl_vitlora.flower.transport import Failure
from fl_vitlora.global_model import GlobalModel
from fl_vitlora.state import State, clone, is_finite, l2_norm, subtract
from fl_vitlora.strategy import ClientPlan, Strategy, Update
from fl_vitlora.testing import made_up_model, made_up_updates

MODEL = made_up_model()
GLOBAL = GlobalModel(tensors=MODEL)
LAYOUT = Layout.of(MODEL)
CLIENTS = [0, 1, 2, 3]
CONFIG = {messages.SERVER_ROUND: 1, messages.LEARNING_RATE: 0.25}
FLOWER: Mapping[str, Mapping[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5},
    "FedAdagrad": {},
    "FedAdam": {},
    "FedYogi": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.25},
    "FedProx": {"proximal_mu": 0.5},
    "Krum": {},
    "MultiKrum": {"num_nodes_to_select": 2},
    "Bulyan": {},
    "QFedAvg": {"client_learning_rate": 0.1},
}


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> Iterator[None]:
    """Some of Flower's strategies collect garbage for every client; leave them little to see."""
    gc.freeze()
    yield
    gc.unfreeze()


def load(name: str, **options: Any) -> flower.Strategy:
    strategy = strategies.load(f"flwr.serverapp.strategy:{name}", {**FLOWER[name], **options})
    assert isinstance(strategy, flower.Strategy)
    return strategy


def made_up(server_round: int, clients: Iterable[int] = CLIENTS) -> list[Update]:
    fedavg = strategies.load("fedavg", {})
    assert isinstance(fedavg, Strategy)
    return made_up_updates(fedavg, server_round, list(clients))


def play(aggregator: Aggregator, rounds: int = 2) -> State:
    model = GLOBAL
    for server_round in range(1, rounds + 1):
        config = {**CONFIG, messages.SERVER_ROUND: server_round}
        aggregator.instruct(server_round, model, CLIENTS, config)
        model = aggregator.aggregate(server_round, model, made_up(server_round), [])
    return model.tensors


def aggregator_of(strategy: Strategy | flower.Strategy) -> Aggregator:
    return make_aggregator(strategy, LAYOUT, seed=0)


@pytest.mark.parametrize("name", FLOWER)
def test_strategies_of_flower_run_unmodified(name: str):
    before = clone(MODEL)
    model = play(aggregator_of(load(name)))
    assert Layout.of(model) == LAYOUT
    assert is_finite(model)
    assert l2_norm(subtract(model, MODEL)) > 0.1
    assert all(tensor.dtype == torch.float32 for tensor in model.values())
    assert all(torch.equal(before[n], tensor) for n, tensor in MODEL.items())


@pytest.mark.parametrize("name", FLOWER)
def test_their_runs_can_be_repeated(name: str):
    random.seed(1)
    first = play(aggregator_of(load(name)))
    random.seed(2)
    second = play(aggregator_of(load(name)))
    assert all(torch.equal(second[n], tensor) for n, tensor in first.items())


@pytest.mark.parametrize("name", FLOWER)
def test_every_participant_is_sent_model_rate_and_round(name: str):
    sent = aggregator_of(load(name)).instruct(1, GLOBAL, CLIENTS, CONFIG)
    assert [instruction.client for instruction in sent] == CLIENTS
    for instruction in sent:
        assert instruction.config.items() >= CONFIG.items()
        assert all(torch.equal(instruction.model.tensors[n], t) for n, t in MODEL.items())
    assert len({id(instruction.model) for instruction in sent}) == 1  # packed once for all


@pytest.mark.parametrize("rounds", [1, 3])
def test_flowers_fedavg_is_ours(rounds: int):
    theirs, ours = (
        play(aggregator_of(strategy), rounds)
        for strategy in (load("FedAvg"), strategies.load("fedavg", {}))
    )
    for name, tensor in ours.items():
        assert torch.allclose(theirs[name], tensor, atol=1e-6, rtol=0), name


def test_a_median_is_the_median_of_the_clients():
    moved = subtract(play(aggregator_of(load("FedMedian")), rounds=1), MODEL)
    for name, tensor in moved.items():
        deltas = torch.stack([update.delta[name] for update in made_up(1)]).sort(dim=0).values
        assert torch.allclose(tensor, (deltas[1] + deltas[2]) / 2, atol=1e-6)


def test_krum_takes_the_model_of_one_client():
    moved = subtract(play(aggregator_of(load("Krum")), rounds=1), MODEL)
    distances = [l2_norm(subtract(moved, update.delta)) for update in made_up(1)]
    assert sorted(distance < 1e-5 for distance in distances) == [False] * 3 + [True]


def test_the_penalty_of_fedprox_reaches_the_clients_from_either_kind():
    for strategy in (load("FedProx"), strategies.load("fedprox", {"mu": 0.5})):
        (sent,) = aggregator_of(strategy).instruct(1, GLOBAL, [3], CONFIG)
        content = Writer(LAYOUT).write(sent, Memory(), frozenset(), None)
        assert read_instruction(content, LAYOUT, None).proximal_mu == 0.5


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


class Recording(flower.FedAvg):
    """FedAvg that keeps the replies it was given."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.replies = list(replies)
        return super().aggregate_train(server_round, self.replies)


def test_failures_are_passed_on_and_left_out():
    strategy = Recording(fraction_evaluate=0.0)
    aggregator = aggregator_of(strategy)
    aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG)
    failures = [Failure(client=2, reason="ran out of memory")]
    model = aggregator.aggregate(1, GLOBAL, made_up(1, [0, 1, 3]), failures)
    wrong = [reply for reply in strategy.replies if reply.has_error()]
    assert [(r.metadata.src_node_id, r.error.reason) for r in wrong] == [(2, "ran out of memory")]
    expected = aggregator_of(strategies.load("fedavg", {})).aggregate(
        1, GLOBAL, made_up(1, [0, 1, 3]), []
    )
    assert all(torch.allclose(model.tensors[n], t, atol=1e-6) for n, t in expected.tensors.items())


def test_a_reply_holds_what_flowers_strategies_expect():
    strategy = Recording(fraction_evaluate=0.0)
    aggregator = aggregator_of(strategy)
    aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG)
    (update,) = made_up(1, [1])
    aggregator.aggregate(1, GLOBAL, [update], [])
    (reply,) = strategy.replies
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 30, "train_loss": 2.0}
    trained = messages.from_arrays(reply.content.array_records["arrays"], LAYOUT)
    delta = subtract(trained, MODEL)
    assert all(torch.allclose(delta[n], t, atol=1e-6) for n, t in update.delta.items())


def test_the_model_stays_where_a_strategy_declines_to_aggregate():
    """Bulyan wants 4·1 + 3 clients and returns nothing for four."""
    model = play(aggregator_of(load("Bulyan", num_malicious_nodes=1)), rounds=1)
    assert all(torch.equal(model[n], t) for n, t in MODEL.items())


def test_a_flower_strategy_may_train_on_fewer_than_it_is_shown():
    strategy = load("FedAvg", fraction_train=0.5)
    seen = [
        [i.client for i in aggregator_of(strategy).instruct(r, GLOBAL, CLIENTS, CONFIG)]
        for r in (1, 1, 2, 3, 4, 5)
    ]
    assert all(len(clients) == 2 and clients == sorted(clients) for clients in seen)
    assert seen[0] == seen[1]
    assert len({tuple(clients) for clients in seen}) > 1


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


def test_a_flower_strategy_may_not_send_by_itself():
    grid = Participants(CLIENTS)
    assert list(grid.get_node_ids()) == CLIENTS
    for call in (grid.send_and_receive, grid.push_messages, grid.pull_messages):
        with pytest.raises(UserError, match="messages are sent by the server loop"):
            call([])


@pytest.mark.parametrize("name", ["min_available_nodes", "min_train_nodes"])
def test_a_strategy_that_would_wait_forever_is_refused(name: str):
    strategy = load("FedAvg", **{name: 5})
    check_cohort(strategy, participants=5)
    with pytest.raises(UserError, match=rf"strategy\.{name} 5: only 4 clients take part"):
        check_cohort(strategy, participants=4)


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
    [((".loraA",), r"'\.loraA'; did you mean '\.lora_A'"), (".lora_A", "expected a tuple")],
)
def test_a_plan_that_freezes_nothing_by_mistake_is_refused(endings: Any, told: str):
    with pytest.raises(UserError, match=told):
        OwnAggregator(Faulty(endings=endings)).instruct(1, GLOBAL, [0], {})
