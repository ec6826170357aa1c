"""Rounds played with a made-up model and made-up clients, without a wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flwr.serverapp.strategy as flower
import torch

import strategies
from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.flower.strategies.aggregators import make_aggregator
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State, clip_norm
from fl_vitlora.strategy import Strategy, Update
from fl_vitlora.testing import made_up_model, made_up_updates

MODEL = made_up_model()
GLOBAL = GlobalModel(tensors=MODEL)
LAYOUT = Layout.of(MODEL)
CLIENTS = [0, 1, 2, 3]
CONFIG = {SERVER_ROUND: 1, LEARNING_RATE: 0.25}

PLAIN: Mapping[str, Mapping[str, Any]] = {
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
NORM = 1.4  # some of the clients' updates are longer, some are shorter
FIXED = {
    f"DifferentialPrivacy{side}SideFixedClipping": {"noise_multiplier": 0.2, "clipping_norm": NORM}
    for side in ("Server", "Client")
}
ADAPTIVE = {
    f"DifferentialPrivacy{side}SideAdaptiveClipping": {
        "noise_multiplier": 0.1,
        "initial_clipping_norm": NORM,
    }
    for side in ("Server", "Client")
}
FLOWER = {**PLAIN, **FIXED, **ADAPTIVE}


def load(name: str, **options: Any) -> flower.Strategy:
    """Makes a strategy of Flower for `CLIENTS`, of six that there are."""
    strategy = strategies.load(
        f"flwr.serverapp.strategy:{name}",
        {**FLOWER[name], **options},
        cohort=len(CLIENTS),
        clients=6,
    )
    assert isinstance(strategy, flower.Strategy)
    return strategy


def aggregator_of(strategy: Strategy | flower.Strategy, seed: int = 0) -> Aggregator:
    return make_aggregator(strategy, LAYOUT, seed)


def made_up(server_round: int, clients: Iterable[int] = CLIENTS) -> list[Update]:
    fedavg = strategies.load("fedavg", {})
    assert isinstance(fedavg, Strategy)
    return made_up_updates(fedavg, server_round, list(clients))


def answer(server_round: int, instructions: Iterable[Instruction]) -> list[Update]:
    """Trains as the made-up clients do, and clips if told to."""
    return [
        _clipped(update, instruction.config)
        for instruction in instructions
        for update in made_up(server_round, [instruction.client])
    ]


def _clipped(update: Update, config: Mapping[str, Any]) -> Update:
    if messages.CLIPPING_NORM not in config:
        return update
    delta, within = clip_norm(update.delta, config[messages.CLIPPING_NORM])
    return Update(
        client=update.client,
        samples=update.samples,
        loss=update.loss,
        delta=delta,
        report={messages.NORM_BIT: torch.tensor(not within)},
    )


def play(aggregator: Aggregator, rounds: int = 2, model: State = MODEL, first: int = 1) -> State:
    current = GlobalModel(tensors=model)
    for server_round in range(first, rounds + 1):
        config = {**CONFIG, SERVER_ROUND: server_round}
        instructions = aggregator.instruct(server_round, current, CLIENTS, config)
        updates = answer(server_round, instructions)
        current = aggregator.aggregate(server_round, current, updates, [])
    return current.tensors


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
