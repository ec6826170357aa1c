"""The names of frozen tensors survive in the memory of a part, among its other tensors."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.frozen_names import frozen, names_of


def test_names_come_back_in_their_order_and_nothing_else_does():
    memory = {"step": torch.ones(2)} | frozen(["b", "a"]) | {"mean of a": torch.ones(1)}
    assert names_of(memory) == ("b", "a")
    assert names_of({"step": torch.ones(2)}) == ()
