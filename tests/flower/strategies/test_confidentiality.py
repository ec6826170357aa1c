"""What secure sums and differential privacy are refused to, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

import strategies
from fl_vitlora.config import Config, load
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.flower.strategies.confidentiality import check_privacy, sees_only_sums
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update
from strategies.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Choosy(Strategy):
    """Takes the first update and looks at no other."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        return {name: tensor + updates[0].delta[name] for name, tensor in model.items()}, state


SECURE = {"privacy.secure_aggregation": True}
CLIPPED = {"privacy.clipping_norm": 1.0}
NOISY = {**CLIPPED, "privacy.noise_multiplier": 1.0}
FLOWERS = "flwr.serverapp.strategy:FedAvg"


def configure(name: str = "fedavg", *wishes: Mapping[str, Any]) -> Config:
    overrides: dict[str, Any] = {"clients": 5, "strategy": name}
    for wish in wishes:
        overrides |= wish
    return load(None, overrides)


def strategy_of(name: str) -> AnyStrategy:
    return Choosy() if name == "choosy" else strategies.load(name, {})


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        check_privacy(config, strategy_of(config.strategy.name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wish", [{}, SECURE, CLIPPED, NOISY, {**SECURE, **NOISY}])
def test_a_strategy_that_needs_only_sums_may_have_everything(wish: Mapping[str, Any]):
    config = configure("fedavg", wish)
    check_privacy(config, strategy_of("fedavg"))
    assert sees_only_sums(config) == bool(wish)


@pytest.mark.parametrize("name", ["choosy", FLOWERS])
def test_who_asks_for_nothing_is_refused_nothing(name: str):
    check_privacy(configure(name), strategy_of(name))


@pytest.mark.parametrize("wish", [SECURE, CLIPPED, NOISY])
def test_a_strategy_that_looks_at_single_updates_is_refused(wish: Mapping[str, Any]):
    told = refusal(configure("choosy", wish))
    assert told.startswith(next(iter(wish)))
    assert "strategy choosy needs single updates" in told
    assert "fedavg" in told


@dataclass(frozen=True, kw_only=True)
class Considerate(FedAvg):
    """Gives the first client less work than the others."""

    def plan(self, server_round: int, *, client: int) -> ClientPlan:  # type: ignore[override]
        return ClientPlan(epochs=1 if client == 0 else 2)


def test_a_plan_for_each_client_is_refused_in_secure_sums_because_masks_would_not_cancel():
    with pytest.raises(UserError, match="gives each client a plan of its own"):
        check_privacy(configure("fedavg", SECURE), Considerate())
    check_privacy(configure("fedavg", NOISY), Considerate())


@pytest.mark.parametrize("wish", [CLIPPED, NOISY, {**SECURE, **NOISY}])
def test_who_remembers_what_it_reported_cannot_have_it_bounded(wish: Mapping[str, Any]):
    scaffold = strategies.load("scaffold", {})
    with pytest.raises(UserError, match="clipping would change the reports"):
        check_privacy(configure("scaffold", wish), scaffold)
    check_privacy(configure("scaffold", SECURE), scaffold)


@pytest.mark.parametrize(("wish", "wrapped"), [(SECURE, False), (NOISY, True)])
def test_a_strategy_of_flower_is_refused_and_its_own_wrappers_are_named(
    wish: Mapping[str, Any], wrapped: bool
):
    told = refusal(configure(FLOWERS, wish))
    assert ":FedAvg of Flower needs single updates" in told
    assert ("DifferentialPrivacyServerSideFixedClipping" in told) == wrapped


@pytest.mark.parametrize("wish", [SECURE, CLIPPED])
def test_clients_of_different_ranks_are_refused(wish: Mapping[str, Any]):
    told = refusal(configure("fedavg", wish, {"finetuning.client_ranks": [1, 2, 4, 4, 4]}))
    assert "updates of the same rank" in told


@pytest.mark.parametrize(("clients", "fraction"), [(2, 1.0), (1, 1.0), (20, 0.1)])
def test_a_secure_sum_of_few_is_refused(clients: int, fraction: float):
    few = {"clients": clients, "fraction": fraction}
    assert "at least 3 clients must take part" in refusal(configure("fedavg", SECURE, few))
    check_privacy(configure("fedavg", NOISY, few), strategy_of("fedavg"))


def test_noise_without_a_norm_is_refused():
    told = refusal(configure("fedavg", {"privacy.noise_multiplier": 1.0}))
    assert "without privacy.clipping_norm" in told


AIMING = {**CLIPPED, "privacy.target_epsilon": 8}


def test_a_target_of_epsilon_takes_a_norm_and_no_noise_beside_it():
    check_privacy(configure("fedavg", AIMING), strategy_of("fedavg"))
    both = {**AIMING, "privacy.noise_multiplier": 1}
    assert "cannot be combined with privacy.noise_multiplier 1" in refusal(
        configure("fedavg", both)
    )
    alone = {"privacy.target_epsilon": 8}
    assert "target_epsilon 8 without privacy.clipping_norm" in refusal(configure("fedavg", alone))
    assert "needs single updates" in refusal(configure("choosy", AIMING))


def test_a_target_that_no_noise_reaches_is_refused_before_the_run():
    told = refusal(
        configure("fedavg", AIMING, {"privacy.target_epsilon": 1e-6, "privacy.delta": 1e-12})
    )
    assert "take a larger target" in told


@pytest.mark.parametrize(
    "given",
    [
        {"privacy.target_epsilon": 0},
        {"privacy.range": 0},
        {"privacy.clipping_norm": 0},
        {"privacy.noise_multiplier": -1},
        {"privacy.delta": 0},
        {"privacy.delta": 1},
    ],
)
def test_values_that_mean_nothing_are_refused(given: Mapping[str, Any]):
    with pytest.raises(UserError, match=next(iter(given))):
        configure("fedavg", given)
