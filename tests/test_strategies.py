"""Every file in strategies/ keeps the contract; FedAvg against a slow oracle; loading by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy
import pytest
import torch

import strategies
from fl_vitlora.errors import UserError
from fl_vitlora.strategy import Strategy, Update
from fl_vitlora.testing import check_strategy, made_up_model, made_up_updates

USERS = '''
"""Half of FedAvg."""
from dataclasses import dataclass

from fl_vitlora.state import add, mean, scale
from fl_vitlora.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Half(Strategy):
    rate: float = 0.5
    def aggregate(self, model, updates, state):
        step = mean([u.delta for u in updates], [1] * len(updates))
        return add(model, scale(step, self.rate)), state
'''


@pytest.mark.parametrize("name", strategies.available())
def test_every_strategy_keeps_the_contract(name: str):
    strategy = strategies.load(name, {})
    assert isinstance(strategy, Strategy)
    check_strategy(strategy)


def test_fedavg_is_the_weighted_mean_in_float64():
    strategy = strategies.load("fedavg", {"server_rate": 0.5})
    assert isinstance(strategy, Strategy)
    model, updates = made_up_model(), made_up_updates(strategy, 1)
    new, state = strategy.aggregate(model, updates, {})
    assert state == {}
    for name, tensor in model.items():
        for position, start in enumerate(tensor.flatten().tolist()):
            moves = [u.samples * u.delta[name].flatten().tolist()[position] for u in updates]
            expected = start + 0.5 * sum(moves) / (40 + 30 + 20 + 10)
            assert float(new[name].flatten()[position]) == pytest.approx(expected, abs=1e-6)


def test_three_images_weigh_three_times_as_much_as_one():
    strategy = strategies.load("fedavg", {})
    assert isinstance(strategy, Strategy)
    updates = [
        Update(client=0, samples=3, loss=1.0, delta={"w": torch.tensor([0.0])}),
        Update(client=1, samples=1, loss=1.0, delta={"w": torch.tensor([4.0])}),
    ]
    assert strategy.aggregate({"w": torch.tensor([10.0])}, updates, {})[0]["w"].tolist() == [11.0]


def test_fedprox_differs_from_fedavg_at_the_clients_only():
    fedavg, fedprox = strategies.load("fedavg", {}), strategies.load("fedprox", {"mu": 0.3})
    assert isinstance(fedavg, Strategy)
    assert isinstance(fedprox, Strategy)
    model, updates = made_up_model(), made_up_updates(fedavg, 1)
    one, other = (s.aggregate(model, updates, {})[0] for s in (fedavg, fedprox))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert (fedavg.plan(1).proximal_mu, fedprox.plan(1).proximal_mu) == (0.0, 0.3)


@pytest.mark.parametrize(
    ("name", "options", "expectation"),
    [
        ("fedavgg", {}, r"unknown strategy 'fedavgg'; did you mean 'fedavg'"),
        ("fedprox", {"nu": 1}, r"unknown setting 'strategy\.nu'; did you mean 'strategy\.mu'"),
        ("fedprox", {"mu": "much"}, r"strategy\.mu: expected a number, got 'much'"),
        ("flwr.serverapp.strategy:FedAvgg", {}, r"did you mean 'FedAvg'"),
        ("flwr.serverapp.strategy:Grid", {}, r"unknown strategy of flwr\.serverapp\.strategy"),
        ("flwr.serverapp.strategy:QFedAvg", {}, r"--set strategy\.client_learning_rate=VALUE"),
        ("flwr.serverapp.strategy:FedAdam", {"beta1": 1}, r"did you mean 'beta_1'"),
        ("no.such.module:Mine", {}, r"cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_is_answered(name: str, options: dict[str, Any], expectation: str):
    with pytest.raises(UserError, match=expectation) as caught:
        strategies.load(name, options)
    assert "\n" not in str(caught.value)


def test_a_strategy_of_flower_gets_the_options_and_no_evaluation():
    strategy = strategies.load("flwr.serverapp.strategy:FedAdam", {"eta": 0.5})
    assert type(strategy) is flwr.serverapp.strategy.FedAdam
    assert (strategy.eta, strategy.fraction_evaluate, strategy.min_train_nodes) == (0.5, 0.0, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of strategies/ to drop files into."""
    copy = tmp_path / "strategies"
    shutil.copytree(Path(strategies.__file__).parent, copy)
    monkeypatch.setattr(strategies, "__path__", [str(copy)])
    known = set(sys.modules)
    yield copy
    for name in set(sys.modules) - known:
        if name.startswith("strategies."):
            del sys.modules[name]


def test_a_dropped_in_file_is_run_by_its_name(folder: Path):
    (folder / "my_half.py").write_text(USERS, encoding="utf-8")
    assert "my_half" in strategies.available()
    strategy = strategies.load("my_half", {"rate": "1e-1"})
    assert isinstance(strategy, Strategy)
    assert strategy == replace(strategy, rate=0.1)  # type: ignore[call-arg]
    check_strategy(strategy)


def test_the_page_that_teaches_strategies_shows_one_that_works(folder: Path):
    page = (folder / "README.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    (folder / "heavy_ball.py").write_text(code, encoding="utf-8")
    strategy = strategies.load("heavy_ball", {"momentum": 0.8})
    check_strategy(strategy)  # type: ignore[arg-type]
    assert len([line for line in code.splitlines() if line.strip()]) <= 14


def test_the_page_tells_of_every_strategy_what_its_class_says():
    page = (Path(strategies.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row for row in rows if row[0].strip("`").isidentifier()}
    assert sorted(told) == strategies.available()
    for name, row in told.items():
        strategy = strategies.load(name, {})
        assert isinstance(strategy, Strategy)
        answers = ["yes" if said else "no" for said in (strategy.any_rank, strategy.sums_suffice)]
        assert row[-2:] == answers, name


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ("x = 1\n", r"strategies/mine\.py: expected one class .* found \[\]"),
        (USERS + USERS.replace("Half", "Other"), r"found \['Half', 'Other'\]"),
        ("import nowhere\n", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("class Half(\n", "cannot be imported: SyntaxError"),
        ("from strategies.fedavg import FedAvg\n", r"expected one class .* found \[\]"),
    ],
)
def test_a_file_that_holds_no_strategy_is_answered(folder: Path, text: str, expectation: str):
    (folder / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=expectation):
        strategies.load("mine", {})
