"""What is equal for all clients of a round is made once for all of them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from flwr.clientapp import ClientApp

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import load
from fl_vitlora.federation.client_records import ClientRecords
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.flower.server.asking import Asker, Question
from fl_vitlora.flower.server.posting import Post
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.wire import masking, vouching
from fl_vitlora.flower.wire.folding import unfold
from fl_vitlora.privacy.secure_sum import Member, Roster
from fl_vitlora.strategy import ClientPlan
from tests.counting_operations import Operations
from tests.flower.conftest import LocalGrid

INITIAL = {"p.lora_A": torch.ones(2, 3), "p.lora_B": torch.zeros(3, 2)}
MODEL = GlobalModel(tensors={name: tensor + 1 for name, tensor in INITIAL.items()})
FROZEN = ClientPlan(frozen=(".lora_A",))


class Deaf:
    """A server whose clients, all of them, have answered once and then answer no more."""

    def __init__(self, clients: int, **given: Any) -> None:
        config = load(None, {"clients": clients, **given})
        self.grid = LocalGrid(ClientApp(), clients)
        self.grid.silent = set(range(clients))
        self.records = ClientRecords(INITIAL)
        for client in range(clients):
            self.records.greeted(client, 100 + client, 10)
            self.records.answered(client, 1, MODEL, FROZEN)
        self.asker = Asker(
            post=Post(grid=self.grid, ledger=Ledger(), timeout=0),
            end=ServerEnd(INITIAL, config, self.records),
            records=self.records,
            config=config,
            layout=Layout.of(INITIAL),
            repeats_errors=False,
        )

    def ask(self, models: Sequence[GlobalModel], **question: Any) -> None:
        """Asks every client to train the model at its place in a list."""
        scalars = {SERVER_ROUND: 2, LEARNING_RATE: 0.1}
        asked = {
            client: Instruction(client=client, model=model, config=scalars, plan=FROZEN)
            for client, model in enumerate(models)
        }
        self.asker.ask(Question(round=2, asked=asked, read=lambda *_: None, **question))

    def comparisons(self, models: Sequence[GlobalModel]) -> int:
        with Operations() as operations:
            self.ask(models)
        compared: int = operations.counted["aten::equal"]
        return compared


@pytest.mark.parametrize("given", [{}, {"compression.downlink": "int8"}])
def test_tensors_are_compared_once_for_all_clients_of_a_round(given: dict[str, Any]) -> None:
    new = GlobalModel(tensors={name: tensor.clone() for name, tensor in MODEL.tensors.items()})
    one, many = Deaf(1, **given), Deaf(7, **given)
    assert many.comparisons([new] * 7) == one.comparisons([new]) > 0


def test_a_stream_follows_each_model_where_clients_get_different_ones() -> None:
    models = [
        GlobalModel(tensors={n: t + number for n, t in INITIAL.items()}) for number in (1, 2, 1)
    ]
    clients = Deaf(3, **{"compression.downlink": "int8"})
    clients.ask(models)
    versions = [unfold(message.content).versions["arrays"][1] for message in clients.grid.sent]
    assert versions == [1, 2, 3]


class Read(UserDict[int, bytes]):
    """Signatures that count how often they are read."""

    reads = 0

    def __getitem__(self, client: int) -> bytes:
        self.reads += 1
        return super().__getitem__(client)


def test_the_signed_roster_of_a_round_is_written_once() -> None:
    members = tuple(Member(client=c, key=bytes([c]) * 32, share=0.1) for c in range(7))
    roster = Roster(round=2, members=members, limit=4.0)
    signatures = Read({client: bytes([client]) * 64 for client in range(7)})
    clients = Deaf(7)
    clients.ask([MODEL] * 7, roster=roster, signatures=signatures)
    assert signatures.reads == 7
    for message in clients.grid.sent:
        content = unfold(message.content).content
        assert masking.read_roster(content) == roster
        assert vouching.read_signatures(content, roster) == signatures
