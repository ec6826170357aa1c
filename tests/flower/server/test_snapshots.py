"""What is written down beside the next round is the state of its moment, whatever comes after."""

from __future__ import annotations

import json
from typing import Any

import torch

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.federation.client_records import ClientRecords, Memory, from_registries
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.flower.strategies.flower_aggregator import Participants
from fl_vitlora.storage.trees import flatten
from fl_vitlora.strategy import ClientPlan
from tests.flower.conftest import transport_of

INITIAL = {"p.lora_A": torch.zeros(2, 3), "p.lora_B": torch.zeros(3, 2)}


def written(tree: Any) -> str:
    return json.dumps(flatten(tree)[1])


def test_streams_that_a_client_follows_later_are_not_in_it() -> None:
    records = ClientRecords(INITIAL)
    records.offer(1, {"arrays": (0, 1)})
    records.heard(1)
    snapshot = records.snapshot()
    before = written(snapshot)
    records.offer(2, {"arrays": (0, 1)})
    records.heard(2)
    records.lost(1)
    assert written(snapshot) == before
    assert written(records.snapshot()) != before


def test_what_clients_remember_later_is_not_in_it() -> None:
    records, model = ClientRecords(INITIAL), GlobalModel(tensors=INITIAL)
    records.answered(1, 1, model, ClientPlan())
    snapshot = records.snapshot()
    before = written(snapshot)
    records.answered(2, 1, model, ClientPlan())
    records.answered(1, 2, model, ClientPlan())
    assert written(snapshot) == before
    assert written(records.snapshot()) != before


def some_records() -> ClientRecords:
    """Three clients: one that took part, one that failed later, one that was never asked."""
    records, model = ClientRecords(INITIAL), GlobalModel(tensors=INITIAL)
    for client in (1, 2):
        records.offer(client, {"arrays": (0, client)})
        records.heard(client)
        records.answered(client, 3, model, ClientPlan(frozen=(".lora_A",)))
    records.lost(2)
    records.missed(2)
    return records


def test_records_that_were_restored_are_those_that_were_saved() -> None:
    records, again = some_records(), ClientRecords(INITIAL)
    again.restore(records.snapshot())
    assert written(again.snapshot()) == written(records.snapshot())
    for client in (1, 2, 3):
        assert again.of(client).followed == records.of(client).followed
        assert again.of(client).memory.taken == records.of(client).memory.taken
        assert again.of(client).memory.missed is records.of(client).memory.missed


def test_the_registries_of_older_checkpoints_become_the_same_records() -> None:
    records = some_records()
    memories = {client: dict(vars(records.of(client).memory)) for client in (1, 2)}
    older = from_registries(memories, {1: {"arrays": (0, 1)}})
    again = ClientRecords(INITIAL)
    again.restore(older)
    assert written(again.snapshot()) == written(records.snapshot())


def test_a_transport_takes_up_the_state_that_the_version_before_wrote() -> None:
    def transport() -> Transport:
        return transport_of(Participants([]), INITIAL, Ledger(), timeout=1)

    one = transport()
    plan = {**vars(ClientPlan()), "frozen": [".lora_A"], "restarted": []}
    memory = {**vars(Memory(round=2, taken=2)), "tensors": dict(INITIAL)}
    end = {"streams": [], "followed": {4: {"arrays": (0, 2)}}}
    one.restore({"holdings": {4: memory}, "end": end, "plan": plan})
    other = transport()
    other.restore(one.snapshot())
    assert written(other.snapshot()) == written(one.snapshot())
    known = one.snapshot()["clients"][4]
    assert known["memory"]["round"] == 2
    assert known["followed"] == {"arrays": (0, 2)}
