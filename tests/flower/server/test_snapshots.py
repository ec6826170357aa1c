"""What is written down beside the next round is the state of its moment, whatever comes after."""

from __future__ import annotations

import json
from typing import Any

import torch

from fl_vitlora.config import load
from fl_vitlora.federation.client_cache import ClientCache
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.storage.trees import flatten
from fl_vitlora.strategy import ClientPlan

INITIAL = {"p.lora_A": torch.zeros(2, 3), "p.lora_B": torch.zeros(3, 2)}


def written(tree: Any) -> str:
    return json.dumps(flatten(tree)[1])


def test_who_follows_a_stream_later_is_not_in_it() -> None:
    end = ServerEnd(INITIAL, load(None, {"compression.downlink": "int8"}))
    end.answered(1)
    snapshot = end.snapshot()
    before = written(snapshot)
    end.answered(2)
    end.missed(1)
    assert written(snapshot) == before
    assert written(end.snapshot()) != before


def test_what_clients_remember_later_is_not_in_it() -> None:
    holdings, model = ClientCache(INITIAL), GlobalModel(tensors=INITIAL)
    holdings.answered(1, 1, model, ClientPlan())
    snapshot = holdings.snapshot()
    before = written(snapshot)
    holdings.answered(2, 1, model, ClientPlan())
    holdings.answered(1, 2, model, ClientPlan())
    assert written(snapshot) == before
    assert written(holdings.snapshot()) != before
