"""Tensors that rest cost nothing: messages of every strategy are those of a method without them.

A method in which tensors rest is compared with one that never had these tensors, message by message
and by the ledger. The clients are real, and so are the messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import strategies
from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.federation.server_method import after_round, with_method
from fl_vitlora.finetuning.aflora import MATRICES, AFLoRA, AFLoRAAdapter
from fl_vitlora.storage.trees import build, flatten
from fl_vitlora.strategy import Strategy
from tests.flower.client.test_context_state import Clients
from tests.flower.conftest import SIZES, both, transport_of

ROUNDS = 4
EVALUATING = ("evaluation", "downlink")
ATTENDANCE = ((0, 1), (0, 1, 2), (1,), (0, 1, 2))  # client 0 sits out a round, client 2 comes late
ONE_STEP = TrainingConfig(epochs=1, batch_size=20, optimizer="sgd")
HEADER = 400  # bytes of the names of the tensors that rest
LOSSY = {"compression__downlink__codec": "int8"}
LDA = ("lora+patch_embed+lda", "lora+patch_embed")
AFLORA = ("aflora", f"{__name__}:BornFrozen")
FREEZES: dict[str, Any] = {  # all matrices after round 2; before, they have been trained
    "finetuning__targets": ["fc1", "fc2"],
    "finetuning__parameters": {"begin": 1 / ROUNDS, "end": 2 / ROUNDS},
}
AVERAGING = ("fedavg", "fedprox", "fednova", "scaffold")  # of any tensors
LOW_RANK = ("ffa_lora", "fedsa_lora", "rolora", "fedsvd", "flora", "fedex_lora")
APPROXIMATING = ("lora_fair", "flexlora", "hetlora")


@dataclass(frozen=True, kw_only=True)
class BornFrozen(AFLoRA):
    """AFLoRA whose matrices never were trained tensors."""

    def adapter(self, weight: Tensor) -> AFLoRAAdapter:
        made = super().adapter(weight)
        for name in (ending.removeprefix(".") for ending in MATRICES):
            drawn = getattr(made, name).detach()
            delattr(made, name)
            made.register_buffer(name, drawn)
        return made


@dataclass(frozen=True, kw_only=True)
class Played:
    """Some rounds: the clients with their ledger, and the last model."""

    clients: Clients
    model: GlobalModel


def play(
    folder: Path,
    name: str,
    method: str,
    attendance: Sequence[Sequence[int]] = ATTENDANCE,
    *,
    broken_off: int = 0,
    training: TrainingConfig = ONE_STEP,
    **given: Any,
) -> Played:
    """Runs rounds of a strategy and a method over a real client app.

    After the round `broken_off` the server forgets everything and goes on from a checkpoint.
    """
    strategy = strategies.load(name, {})
    assert isinstance(strategy, Strategy)
    clients = Clients(
        folder,
        strategy,
        training=training,
        finetuning__method=method,
        rounds=ROUNDS,
        **given,
    )
    tuned = clients.worker.method
    aggregator, model = OwnAggregator(strategy), GlobalModel(tensors=clients.initial)
    for number, participants in enumerate(attendance, start=1):
        config = {SERVER_ROUND: number, LEARNING_RATE: 1e-2}
        planned = aggregator.instruct(number, model, participants, config)
        exchange = clients.transport.exchange(number, with_method(tuned, number, planned))
        updates, failures = both(exchange)
        assert failures == []
        aggregated = aggregator.aggregate(number, model, updates, failures)
        model = after_round(tuned, model, aggregated, number, ROUNDS)
        if number == broken_off:
            model, aggregator = gone_on(clients, model, aggregator, OwnAggregator(strategy))
    return Played(clients=clients, model=model)


def gone_on(
    clients: Clients, model: GlobalModel, before: OwnAggregator, after: OwnAggregator
) -> tuple[GlobalModel, OwnAggregator]:
    """Puts a new server in place of the old one, with what a checkpoint holds."""
    state = {"transport": clients.transport.snapshot(), "model": model.snapshot()}
    tensors, plain = flatten({**state, "strategy": before.snapshot()[0]})
    tree = build(tensors, json.loads(json.dumps(plain)))
    clients.transport = transport_of(
        clients.grid, clients.initial, clients.ledger, config=clients.settings.config, timeout=1
    )
    clients.transport.greet(len(SIZES))
    clients.transport.restore(tree["transport"])
    after.restore(tree["strategy"], {})
    return GlobalModel.restored(tree["model"]), after


@pytest.mark.parametrize("codec", [{}, LOSSY], ids=["exact", "int8"])
@pytest.mark.parametrize("method", [LDA[0], AFLORA[0]])
def test_a_server_that_goes_on_from_a_checkpoint_sends_the_same(
    method: str, codec: dict[str, Any], tmp_path: Path
) -> None:
    given = (FREEZES if method == AFLORA[0] else {}) | codec
    whole, broken = (
        play(tmp_path / str(after), "scaffold", method, broken_off=after, **given)
        for after in (0, 2)
    )
    assert all(torch.equal(t, broken.model.tensors[n]) for n, t in whole.model.tensors.items())
    assert {payload for payload, _ in excess(broken, whole).values()} == {0}


def excess(found: Played, plain: Played) -> dict[tuple[int, int], tuple[int, int]]:
    """Returns by how many bytes messages to clients are larger: of tensors, and of all else."""
    sent, others = (
        {
            (e.round, e.client): e
            for e in one.clients.ledger
            if e.round and e.direction == "downlink"
        }
        for one in (found, plain)
    )
    assert len(sent) == len(others) == sum(map(len, ATTENDANCE))
    return {
        place: (one.payload - others[place].payload, one.overhead - others[place].overhead)
        for place, one in sent.items()
    }


def first_tier(*names: str) -> list[Any]:
    """Returns the names of strategies, most of which are for the slow tests."""
    kept = ("scaffold", "flora")
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("codec", [{}, LOSSY], ids=["exact", "int8"])
@pytest.mark.parametrize("name", first_tier(*AVERAGING, *LOW_RANK, *APPROXIMATING))
def test_statistics_of_the_head_start_are_never_sent_to_clients(
    name: str, codec: dict[str, Any], tmp_path: Path
) -> None:
    """In round 1 all but the statistics rest, and from round 2 on the statistics rest."""
    measuring = play(tmp_path / "lda", name, LDA[0], **codec)
    plain = play(tmp_path / "plain", name, LDA[1], **codec)
    for place, (payload, overhead) in excess(measuring, plain).items():
        assert payload <= 0, place
        assert overhead <= HEADER, place


@pytest.mark.parametrize("codec", [{}, LOSSY], ids=["exact", "int8"])
@pytest.mark.parametrize("name", first_tier(*AVERAGING))
def test_a_matrix_that_aflora_froze_is_sent_to_a_client_at_most_once_more(
    name: str, codec: dict[str, Any], tmp_path: Path
) -> None:
    freezing = play(tmp_path / "aflora", name, AFLORA[0], **FREEZES, **codec)
    plain = play(tmp_path / "plain", name, AFLORA[1], **FREEZES, **codec)
    matrices = sum(t.numel() for n, t in freezing.model.tensors.items() if n.endswith(MATRICES))
    had = set[int]()
    for (number, client), (payload, overhead) in excess(freezing, plain).items():
        if number > 2:
            assert payload <= (0 if client in had else 4 * matrices), (number, client)
            assert overhead <= HEADER, (number, client)
            had.add(client)
    assert had == {0, 1, 2}


def test_a_client_that_evaluates_after_round_1_is_sent_the_new_head_alone(tmp_path: Path) -> None:
    played = play(tmp_path, "fedavg", LDA[0], [(0, 1, 2)])
    played.clients.transport.measure(1, played.model, [RIGHT_KEY])
    head = sum(t.numel() for n, t in played.model.tensors.items() if n.startswith("head."))
    asked = [e for e in played.clients.ledger if (e.purpose, e.direction) == EVALUATING]
    assert [entry.payload for entry in asked] == [4 * head] * 3
