"""A run is told with the strategy that it really has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import strategies
from fl_vitlora.config import Config, StrategyConfig, load, to_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.strategies.identity import class_path, describe, parameters, told
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from tests.flower.played import FLOWER
from tests.flower.server.test_saving import serve


@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    """A strategy of a program that hands in an instance."""

    rate: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    start: Tensor | None = None

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        return model, state


def named(name: str, **options: Any) -> Config:
    return load(None, {"clients": 6, "strategy": {"name": name, **options}})


@pytest.mark.parametrize("name", strategies.available())
def test_a_strategy_that_the_configuration_makes_leaves_it_as_it_is(name: str):
    config = named(name)
    assert told(config, strategies.load_for(config)) is config
    for spelt in (f"strategies/{name}.py", f"./strategies/{name}"):
        spelt_out = named(spelt)
        assert told(spelt_out, strategies.load_for(spelt_out)) is spelt_out


@pytest.mark.parametrize("name", FLOWER)
def test_so_does_one_of_flower(name: str):
    config = named(f"flwr.serverapp.strategy:{name}", **FLOWER[name])
    assert told(config, strategies.load_for(config)) is config


@pytest.mark.parametrize(
    "options",
    [
        {"target_delta": 1e-5},
        {"strategy": "flwr.serverapp.strategy:FedAvgM"},
        {"strategy": {"name": "flwr.serverapp.strategy:FedAvgM", "server_momentum": 0.5}},
        {"strategy": {"weighted_by_key": "num-examples"}},
    ],
)
def test_so_does_a_wrapper_with_what_is_in_it(options: dict[str, Any]):
    name = "DifferentialPrivacyServerSideFixedClipping"
    config = named(f"flwr.serverapp.strategy:{name}", **FLOWER[name], **options)
    strategy = strategies.load_for(config)
    assert told(config, strategy) is config
    other = replace(config, clients=7)  # its noise is scaled by the clients of a round
    assert told(other, strategy).strategy.options["num_sampled_clients"] == 6


def test_texts_of_numbers_are_numbers():
    config = named("fedprox", mu="1e-1")
    assert told(config, FedProx(mu=0.1)) is config


@pytest.mark.parametrize(
    ("config", "strategy", "name", "options"),
    [
        (Config(), FedProx(mu=0.5), "fedprox", {"mu": 0.5}),
        (named("fedprox", mu=0.1), FedProx(mu=0.5), "fedprox", {"mu": 0.5}),
        (named("fedprox", mu=0.1), FedAvg(), "fedavg", {"server_rate": 1.0}),
        (named("fedprox", mo=0.1), FedAvg(), "fedavg", {"server_rate": 1.0}),
        (
            Config(),
            Mine(rate=2.0, start=torch.zeros(1)),
            f"{__name__}:Mine",
            {"rate": 2.0, "sizes": [1, 2], "start": "(Tensor)"},
        ),
    ],
)
def test_another_instance_is_named_instead(
    config: Config, strategy: Strategy, name: str, options: dict[str, Any]
):
    found = told(config, strategy)
    assert found.strategy == StrategyConfig(name=name, options=options)
    assert replace(found, strategy=config.strategy) == config
    assert json.loads(json.dumps(options)) == options


def test_what_is_written_down_makes_the_instance_again(tmp_path: Path):
    strategy = strategies.load(
        "flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping",
        {**FLOWER["DifferentialPrivacyClientSideFixedClipping"], "target_delta": 1e-5},
        cohort=20,
        clients=20,
    )
    assert told(Config(), strategy).strategy.name == (
        "flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping"
    )
    for one in (strategy, Mine(rate=3.0), FedProx(mu=0.25)):
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(told(Config(), one)))
        again = strategies.load_for(load(str(file)), confirmed=[f"{__name__}:Mine"])
        assert (class_path(again), parameters(again)) == (class_path(one), parameters(one))
        assert describe(again) == describe(one)


def test_a_class_that_cannot_be_imported_again_is_refused_when_it_is_loaded():
    @dataclass(frozen=True, kw_only=True)
    class Local(Mine):
        pass

    with pytest.raises(UserError):
        strategies.load_for(told(Config(), Local()))


def test_the_run_folder_names_the_instance_and_goes_on_with_an_equal_one_only(tmp_path: Path):
    """The configuration asks for fedavg; the run is handed FedProx."""
    result, run = serve(tmp_path, strategy=FedProx(mu=0.5), states=followed())
    assert (result["strategy"], result["strategy_class"]) == (
        "fedprox",
        "strategies.fedprox:FedProx",
    )
    assert result["strategy_parameters"] == {"mu": 0.5}
    written = load(str(run.folder.path / "config.yaml")).strategy
    assert written == StrategyConfig(name="fedprox", options={"mu": 0.5})
    with pytest.raises(UserError, match=r"strategies\.fedprox:FedProx\(mu=0\.5\) and can continue"):
        serve(tmp_path, strategy=FedProx(mu=0.25), states=followed(), resume=True)
    again, _ = serve(tmp_path, strategy=FedProx(mu=0.5), states=followed(), resume=True)
    assert again["loss"] == result["loss"]


def followed() -> ClientStates:
    """What clients remember, where checkpoints are written."""
    states = ClientStates()
    states.followed = True
    return states
