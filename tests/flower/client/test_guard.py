"""A client with a guard refuses what no honest server sends, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.federation.exchange import Exchange
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.direct import answer, folded
from fl_vitlora.flower.client.sum_checks import check_work
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.strategies.aggregators import make_aggregator
from fl_vitlora.flower.strategies.guard_settings import check_guard, check_steps
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.round_message import RoundMessage, Writer
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy
from fl_vitlora.training.local import scheduled_rate
from strategies.fedavg import FedAvg
from tests.flower.conftest import SIZES, LocalGrid, transport_of, write_shards

STEPS, ROUNDS = 3, 3  # the largest client has 20 images, in batches of 8
CLIENT = 1
GUARDED = (
    "fed_sb",
    "fedavg",
    "fedprox",
    "fedsa_lora",
    "ffa_lora",
    "geometric_median",
    "krum",
    "median",
    "multi_krum",
    "rolora",
    "trimmed_mean",
)
OPTIONS = {"krum": {"strategy.f": 0}, "multi_krum": {"strategy.f": 0}}


def guarded(strategy: str = "fedavg", **given: Any) -> tuple[Config, Strategy]:
    """Returns the settings of an experiment whose clients have a guard, and its strategy."""
    named = {path.replace("__", "."): value for path, value in given.items()}
    config = configuration.load(
        None,
        {
            "clients": len(SIZES),
            "rounds": ROUNDS,
            "strategy.name": strategy,
            "model.weights": "random",
            "privacy.guard_steps": STEPS,
            **OPTIONS.get(strategy, {}),
            **named,
        },
    )
    made = strategies.load_for(config)
    assert isinstance(made, Strategy)
    return replace(config, encryption=replace(config.encryption, key_file="")), made


@pytest.fixture
def client(tmp_path: Path) -> ClientSettings:
    config, strategy = guarded()
    return write_shards(tmp_path, config, bytes(32), strategy)


def instruction(settings: ClientSettings, number: int = 1, **changes: Any) -> RoundMessage:
    """Returns what an honest server sends in a round in which the model did not move."""
    config = settings.config
    honest = RoundMessage(
        tensors=dict(workspace(settings).initial),
        round=number,
        rate=scheduled_rate(config.training, number, config.rounds),
    )
    return replace(honest, **changes)


def test_an_honest_instruction_is_answered(client: ClientSettings):
    assert isinstance(answer(client, CLIENT, instruction(client)), dict)


def test_without_a_guard_everything_is_answered(client: ClientSettings):
    config = replace(client.config, privacy=replace(client.config.privacy, guard_steps=None))
    free = replace(client, config=config)
    moved = {name: tensor + 1 for name, tensor in workspace(free).initial.items()}
    assert isinstance(answer(free, CLIENT, instruction(free, tensors=moved)), dict)


Change = Callable[[ClientSettings], dict[str, Any]]


def shifted(name: str, by: float) -> Change:
    def change(settings: ClientSettings) -> dict[str, Any]:
        tensors = dict(workspace(settings).initial)
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[3] += by
        return {"tensors": tensors}

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "another start": (shifted("head.bias", 1e-6), "tensor head.bias with an entry 1e-06"),
    "frozen": (lambda _: {"frozen": ("head.weight",)}, "head.weight as the frozen tensors"),
    "rate": (lambda _: {"rate": 0.5}, "0.5 as the learning rate, expected 0.02"),
    "epochs": (lambda _: {"epochs": 9}, "9 as the number of epochs"),
    "proximal": (lambda _: {"proximal_mu": 0.1}, "0.1 as the proximal weight"),
    "norm": (lambda _: {"clipping_norm": 1.0}, "as the clipping norm"),
    "restarted": (lambda _: {"restarted": (".lora_A",)}, "as the restarted tensors"),
    "round": (lambda _: {"round": ROUNDS + 1}, "expected a round from 1 to 3"),
    "broadcast": (
        lambda settings: {"broadcast": dict(workspace(settings).initial)},
        "tensors beside the model",
    ),
    "far away": (
        lambda settings: {
            **shifted("patch_embed.proj.weight", 9.0)(settings),
            "round": 2,
            "rate": scheduled_rate(settings.config.training, 2, ROUNDS),
        },
        "tensor patch_embed.proj.weight with an entry 9 away from its start",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_honest_server_sends_is_refused_by_name(what: str, client: ClientSettings):
    change, told = REFUSED[what]
    refusal = answer(client, CLIENT, instruction(client, **change(client)))
    assert isinstance(refusal, str)
    assert "privacy.guard_steps" in refusal
    assert told in refusal
    assert "\n" not in refusal


def test_no_message_to_train_escapes_the_guard_as_one_to_evaluate(client: ClientSettings):
    """The guard demands less of a model that a client only evaluates."""
    told = answer(client, CLIENT, instruction(client, rate=9.0, views=("test",)))
    assert told == "message refused: it asks a client to train, but names images to evaluate"


SUMMED: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"rate": 1e-6}, "got 1e-06 as the learning rate, expected 0.015"),
    "epochs": (
        {"epochs": 60},
        "got 60 as the number of epochs, expected the number in the settings",
    ),
    "round": ({"round": 1}, "got round 1, expected round 2, as in the roster"),
}


@pytest.mark.parametrize("what", SUMMED)
def test_a_secure_sum_of_other_work_than_agreed_is_refused(what: str):
    """With many epochs at a tiny rate, two sums would show the client by which they differ."""
    config, strategy = guarded(privacy__guard_steps=None, privacy__secure_aggregation=True)
    rate = scheduled_rate(config.training, 2, ROUNDS)
    changes, told = SUMMED[what]
    check_work(RoundMessage(round=2, rate=rate), 2, config, strategy, CLIENT)
    other = RoundMessage(**({"round": 2, "rate": rate} | changes))
    with pytest.raises(ValueError, match=re.escape(f"(privacy.secure_aggregation): {told}")):
        check_work(other, 2, config, strategy, CLIENT)


def test_sums_for_frozen_weights_are_refused(client: ClientSettings):
    path = "blocks.0.attn.qkv.adapters.q"
    sums = {path: torch.ones(96, 96)}
    told = answer(client, CLIENT, instruction(client, increments=sums, merges=(0, 1)))
    assert "sums for frozen weights" in str(told)


class Rounds:
    """The rounds of an experiment whose clients answer in this process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.config, strategy = guarded(name)
        check_guard(self.config, strategy)
        settings = write_shards(folder, self.config, bytes(32), strategy)
        grid = LocalGrid(make_client_app(lambda context: settings), len(SIZES))
        worker = workspace(settings)
        initial = {n: worker.initial[n] for n in worker.layout.names}
        self.transport = transport_of(grid, initial, Ledger(), timeout=60, config=self.config)
        check_steps(self.config, self.transport.greet(len(SIZES)))
        self.aggregator = make_aggregator(strategy, worker.layout, self.config.seed)
        self.start = GlobalModel(tensors=initial)

    def exchange(self, number: int, model: GlobalModel) -> Exchange:
        rate = scheduled_rate(self.config.training, number, ROUNDS)
        told = {SERVER_ROUND: number, LEARNING_RATE: rate}
        asked = self.aggregator.instruct(number, model, range(len(SIZES)), told)
        return self.transport.exchange(number, asked)


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.usefixtures("_run")
def test_honest_rounds_are_never_refused(name: str, tmp_path: Path):
    rounds = Rounds(name, tmp_path)
    model = rounds.start
    for number in range(1, ROUNDS + 1):
        exchange = rounds.exchange(number, model)
        assert [failure.reason for failure in exchange.failures] == []
        model = rounds.aggregator.aggregate(number, model, exchange.updates, [])
    assert model.differs_from(rounds.start)


@pytest.mark.usefixtures("_run")
def test_a_refusal_is_a_failure_of_the_client_with_its_reason(tmp_path: Path):
    rounds = Rounds("fedavg", tmp_path)
    crafted = {n: t + 1 if n == "head.bias" else t for n, t in rounds.start.tensors.items()}
    exchange = rounds.exchange(1, replace(rounds.start, tensors=crafted))
    assert exchange.updates == ()
    assert [failure.client for failure in exchange.failures] == [0, 1, 2]
    assert all("tensor head.bias with" in failure.reason for failure in exchange.failures)


@dataclass(frozen=True, kw_only=True)
class Drifting(FedAvg):
    """A strategy with a bound of the server's step, which moves the clients by its own tensors."""

    def drift(self, broadcast: State, memory: State) -> State:
        return broadcast


UNBOUNDED: dict[str, tuple[dict[str, Any], str]] = {
    "strategy": ({"strategy": "scaffold"}, "strategy scaffold states no bound"),
    "merges": ({"strategy": "flora"}, "strategy flora states no bound"),
    "method": ({"finetuning__method": "lora+lda"}, "rules that clients do not know"),
    "decay": ({"training__weight_decay": 0.1}, "weight_decay 0.1"),
    "sgd": ({"training__optimizer": "sgd"}, "sgd with training.clip_norm"),
    "codec": ({"compression__downlink__codec": "int8"}, "compression.downlink"),
    "uplink": ({"compression__uplink__codec": "int8"}, "compression.uplink"),
    "sums": ({"privacy__secure_aggregation": True}, "the rounding of secure sums"),
    "hostile": ({"attack__kinds": ("nan",), "attack__clients": 1}, "hostile clients"),
}


@pytest.mark.parametrize("what", UNBOUNDED)
def test_settings_without_a_bound_are_refused_before_a_run(what: str):
    given, told = UNBOUNDED[what]
    config, strategy = guarded(**given)
    with pytest.raises(UserError, match=told):
        check_guard(config, strategy)


def test_a_strategy_whose_clients_drift_is_refused_although_it_states_a_bound():
    config, _ = guarded()
    with pytest.raises(UserError, match="adds a drift to each step"):
        check_guard(config, Drifting())


def test_a_client_with_more_steps_than_the_guard_says_ends_the_run_at_its_beginning():
    config, _ = guarded()
    check_steps(config, {0: 24, 1: 1})
    with pytest.raises(UserError, match="client 0 takes 4 steps in a round"):
        check_steps(config, {0: 25, 1: 1})


def test_every_strategy_with_a_bound_is_tried_here():
    known = {path.stem for path in Path(strategies.__file__).parent.glob("[a-z]*.py")}
    bounded = set()
    for name in known:
        made = strategies.load(name, {}, cohort=9, clients=9)
        if isinstance(made, Strategy) and made.step_bound() is not None:
            bounded.add(name)
    assert bounded == set(GUARDED)


@dataclass(frozen=True, kw_only=True)
class Crashing(FedAvg):
    """A strategy with a fault in the code that runs at clients."""

    def drift(self, broadcast: State, memory: State) -> State:
        raise RuntimeError("a fault of the program")


def test_a_crash_is_not_taken_for_a_refusal(client: ClientSettings):
    with pytest.raises(RuntimeError, match="a fault of the program"):
        answer(replace(client, strategy=Crashing()), CLIENT, instruction(client))


@pytest.mark.parametrize("missing", [SERVER_ROUND, LEARNING_RATE])
@pytest.mark.usefixtures("_run")
def test_an_instruction_without_the_round_or_the_rate_is_refused(
    missing: str, client: ClientSettings
):
    layout = workspace(client).layout
    content = Writer(layout).write(instruction(client), None)
    config = content.config_records[messages.CONFIG]
    del config[missing]
    message = Message(
        folded(content, MessageLayouts.of(config, layout, None)),
        dst_node_id=100 + CLIENT,
        message_type="train",
    )
    reply = LocalGrid(make_client_app(lambda context: client), len(SIZES)).answer(message)
    assert f"message refused: it lacks {missing}" in (reply.error.reason or "")
