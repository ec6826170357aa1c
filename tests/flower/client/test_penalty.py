"""A strategy's penalty reaches the loss of its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fl_vitlora.finetuning.norm import Norm
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, averaged
from fl_vitlora.training.objective import Proximal, terms_of
from strategies.fedavg import FedAvg
from tests.flower.client.test_context_state import Clients

MU = 50.0


@dataclass(frozen=True, kw_only=True)
class ByPenalty(FedAvg):
    def penalty(self, parameters, anchor):
        return Proximal(MU)(parameters, anchor)


@dataclass(frozen=True, kw_only=True)
class ByPlan(FedAvg):
    def plan(self, server_round: int) -> ClientPlan:
        return ClientPlan(proximal_mu=MU)


def trained(folder: Path, strategy: FedAvg, **given: str) -> State:
    clients = Clients(folder, strategy, **given)  # type: ignore[arg-type]
    updates = clients.train(1, clients.initial, plan=strategy.plan(1))
    assert len(updates) == 3
    return averaged(clients.initial, updates)


def test_only_a_strategy_that_defines_a_penalty_has_a_term() -> None:
    assert terms_of(FedAvg()) == ()
    assert terms_of(ByPenalty()) == terms_of(ByPenalty())
    (term,) = terms_of(ByPenalty())
    weights, anchor = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.zeros(2)}
    assert term(weights, anchor) == MU / 2 * 10


def test_a_penalty_in_code_trains_clients_as_the_weight_in_a_plan_does(tmp_path: Path) -> None:
    code = trained(tmp_path / "code", ByPenalty())
    plan = trained(tmp_path / "plan", ByPlan())
    free = trained(tmp_path / "free", FedAvg())
    assert all(torch.equal(tensor, plan[name]) for name, tensor in code.items())
    assert not all(torch.equal(tensor, free[name]) for name, tensor in code.items())


@dataclass(frozen=True, kw_only=True)
class HeldNorm(Norm):
    """The normalisations, and a penalty on everything that is trained beside them."""

    def penalty(self, parameters, anchor):
        return Proximal(MU)(parameters, anchor)


def test_a_penalty_of_a_method_trains_clients_as_that_of_a_strategy_does(tmp_path: Path) -> None:
    plain, held = (f"lora+{part}" for part in ("norm", f"{__name__}:HeldNorm"))
    finals = [
        trained(tmp_path / name, strategy, finetuning__method=method)
        for name, strategy, method in (
            ("method", FedAvg(), held),
            ("strategy", ByPenalty(), plain),
            ("free", FedAvg(), plain),
        )
    ]
    own, other, free = finals
    assert own.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())
    assert not all(torch.equal(tensor, free[name]) for name, tensor in own.items())
