"""Every file in strategies/ keeps the contract; FedAvg against a slow oracle; loading by name."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy
import pytest
import torch

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config.yaml_text import parse_override
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.aggregators import client_half
from fl_vitlora.flower.wire.wiring import check_codecs
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
    here, start = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}
    assert float(fedavg.penalty(here, start)) == 0.0
    assert float(fedprox.penalty(here, start)) == pytest.approx(0.3 / 2 * 2.0**2)


@pytest.mark.parametrize(
    ("name", "options", "expectation"),
    [
        ("fedavgg", {}, r"unknown strategy 'fedavgg'; did you mean 'fedavg'"),
        ("fedprox", {"nu": 1}, r"unknown setting 'strategy\.nu'; did you mean 'strategy\.mu'"),
        ("fedprox", {"mu": "much"}, r"strategy\.mu: expected a number, got 'much'"),
        ("flwr.serverapp.strategy:FedAvgg", {}, r"did you mean 'FedAvg'"),
        ("flwr.serverapp.strategy:Grid", {}, r"unknown strategy in flwr\.serverapp\.strategy"),
        ("flwr.serverapp.strategy:QFedAvg", {}, r"--set strategy\.client_learning_rate=VALUE"),
        ("flwr.serverapp.strategy:FedAdam", {"beta1": 1}, r"did you mean 'beta_1'"),
        ("FedYogi", {}, r"did you mean 'flwr\.serverapp\.strategy:FedYogi'\?"),
        ("no.such.module:Mine", {}, r"cannot be imported: ModuleNotFoundError"),
        ("os:path", {}, r"unknown strategy in os 'path' \(there are no choices\)"),
        ("flwr.serverapp.strategy:FedAvg", {"train_metrics_aggr_fn": 3}, r"expected a function"),
        ("flwr.serverapp.strategy:FedAdam", {"eta": "nan"}, r"strategy\.eta: expected a number"),
    ],
)
def test_what_cannot_be_loaded_is_answered(name: str, options: dict[str, Any], expectation: str):
    with pytest.raises(UserError, match=expectation) as caught:
        strategies.load(name, options)
    assert "\n" not in str(caught.value)


def test_a_strategy_of_flower_gets_the_options_and_sums_up_all_that_measure():
    strategy = strategies.load("flwr.serverapp.strategy:FedAdam", {"eta": 0.5})
    assert type(strategy) is flwr.serverapp.strategy.FedAdam
    assert (strategy.eta, strategy.fraction_evaluate, strategy.min_train_nodes) == (0.5, 1.0, 1)


DP = "flwr.serverapp.strategy:DifferentialPrivacy"
FIXED = {"noise_multiplier": "1e-1", "clipping_norm": 1}


def test_options_of_flowers_strategies_are_read_by_their_types():
    strategy = strategies.load("flwr.serverapp.strategy:FedAdam", {"eta": "1e-2", "tau": 1})
    assert (vars(strategy)["eta"], vars(strategy)["tau"]) == (0.01, 1.0)
    with pytest.raises(UserError, match=r"strategy\.min_train_nodes: expected a whole number"):
        strategies.load("flwr.serverapp.strategy:FedAvg", {"min_train_nodes": 1.5})


@pytest.mark.parametrize(
    ("given", "kind", "eta"),
    [
        ({}, "FedAvg", None),
        ({"strategy": "flwr.serverapp.strategy:FedYogi"}, "FedYogi", 0.01),
        ({"strategy": {"name": "flwr.serverapp.strategy:FedAdam", "eta": 0.5}}, "FedAdam", 0.5),
        ({"strategy": {"fraction_train": 0.5}}, "FedAvg", None),
    ],
)
@pytest.mark.parametrize("side", ["Server", "Client"])
def test_a_wrapper_of_flower_is_given_what_it_wraps(
    side: str, given: dict[str, Any], kind: str, eta: float | None
):
    name = f"{DP}{side}SideFixedClipping"
    wrapper = vars(strategies.load(name, {**FIXED, **given}, cohort=5, clients=20))
    inner = wrapper["strategy"]
    assert (wrapper["noise_multiplier"], wrapper["num_sampled_clients"]) == (0.1, 5)
    assert type(inner) is getattr(flwr.serverapp.strategy, kind)
    assert getattr(inner, "eta", None) == eta
    assert (inner.fraction_evaluate, inner.min_train_nodes) == (1.0, 1)


def test_a_wrapper_may_wrap_a_wrapper():
    within = {"name": f"{DP}ServerSideFixedClipping", **FIXED}
    wrapper = strategies.load(f"{DP}ClientSideFixedClipping", {**FIXED, "strategy": within})
    assert type(vars(wrapper)["strategy"].strategy) is flwr.serverapp.strategy.FedAvg


def test_the_cohort_and_the_population_are_those_of_the_experiment():
    given = {"strategy": f"{DP}ServerSideFixedClipping", "clients": 20, "fraction": 0.25}
    options = {f"strategy.{key}": value for key, value in {**FIXED, "target_delta": 1e-5}.items()}
    wrapper = vars(strategies.load_for(configuration.load(None, {**given, **options})))
    assert wrapper["num_sampled_clients"] == 5
    assert wrapper["accountant"].config.population_size == 20
    assert wrapper["accountant"].config.target_delta == 1e-5


@pytest.mark.parametrize(
    ("options", "expectation"),
    [
        ({"clipping_norm": 1}, r"--set strategy\.noise_multiplier=VALUE$"),
        ({**FIXED, "noise_multiplyer": 1}, r"'noise_multiplyer'; did you mean 'noise_multiplier'"),
        ({**FIXED, "clipping_norm": -1}, "clipping norm should be a positive value"),
        ({**FIXED, "target_delta": "small"}, r"strategy\.target_delta: expected a number"),
        ({**FIXED, "target_delta": 2}, "target_delta must be finite and strictly between 0 and 1"),
        (
            {**FIXED, "noise_multiplier": 0, "target_delta": 1e-5},
            "must be positive when accounting",
        ),
        ({**FIXED, "accountant": "rdp"}, r"'accountant'.*target_delta"),
        ({**FIXED, "strategy": 3}, r"strategy\.strategy: expected the name of a strategy, got 3"),
        (
            {**FIXED, "strategy": "fedavg"},
            r"strategy\.strategy: fedavg is a strategy of this project",
        ),
        ({**FIXED, "strategy": "fedavgg"}, "did you mean 'fedavg'"),
        (
            {**FIXED, "strategy": "flwr.serverapp.strategy:QFedAvg"},
            r"--set strategy\.strategy\.client_learning_rate=VALUE$",
        ),
        (
            {**FIXED, "strategy": {"name": "flwr.serverapp.strategy:FedAdam", "eta": "fast"}},
            r"strategy\.strategy\.eta: expected a number",
        ),
        (
            {**FIXED, "target_delta": 1e-5, "strategy": "flwr.serverapp.strategy:FedMedian"},
            "accounting currently requires a strategy using FedAvg",
        ),
    ],
)
def test_a_wrapper_that_cannot_be_made_is_answered(options: dict[str, Any], expectation: str):
    with pytest.raises(UserError, match=expectation) as caught:
        strategies.load(f"{DP}ServerSideFixedClipping", options)
    assert "\n" not in str(caught.value)


def test_an_account_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[privacy\]'"):
        strategies.load(f"{DP}ClientSideFixedClipping", {**FIXED, "target_delta": 1e-5})
    strategies.load(f"{DP}ClientSideFixedClipping", FIXED)


LATE = '''
"""Weighs as it is told, in types that only a type checker knows."""
from __future__ import annotations
from typing import TYPE_CHECKING, Any
import flwr.serverapp.strategy as flower
if TYPE_CHECKING:
    from elsewhere import Weight

class Late(flower.FedAvg):
    def __init__(self, weight: Weight, **given: Any) -> None:
        super().__init__(**given)
        self.weight = weight
'''


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


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        ("heavy_ball", {"momentum": 0.8}, 14),
        ("attentive", {"mu": 0.1}, 30),
        ("merging", {"rate": 0.5}, 16),
    ],
)
def test_the_page_that_teaches_strategies_shows_some_that_work(
    folder: Path, name: str, options: dict[str, float], lines: int
):
    page = (folder / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    [code] = [block for block in blocks if name.replace("_", "") in block.lower()]
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    strategy = strategies.load(name, options)
    check_strategy(strategy)  # type: ignore[arg-type]
    chosen = {"strategy.name": name, **{f"strategy.{n}": v for n, v in options.items()}}
    check_codecs(configuration.load(None, chosen), client_half(strategy))
    assert len([line for line in code.splitlines() if line.strip()]) <= lines


def test_the_page_gives_the_helpers_the_signatures_that_they_have():
    page = (Path(strategies.__file__).parent / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(strategy|lowrank)\.(\w+)\((.*?)\)`", page, re.MULTILINE)
    assert len(told) == 10
    for module, name, arguments in told:
        helper = getattr(importlib.import_module(f"fl_vitlora.{module}"), name)
        given = inspect.signature(helper).parameters.values()
        plain = [str(p.replace(annotation=p.empty)) for p in given]
        assert [text.replace(" ", "") for text in plain] == arguments.replace(" ", "").split(",")


def test_a_strategy_of_flowers_kind_may_take_any_options(folder: Path):
    (folder / "late.py").write_text(LATE, encoding="utf-8")
    given = {"weight": "heavy", "fraction_evaluate": 0.0}
    strategy = vars(strategies.load("late", given))
    assert (strategy["weight"], strategy["fraction_evaluate"]) == ("heavy", 0.0)
    with pytest.raises(UserError, match=r"strategy late needs a value: --set strategy\.weight"):
        strategies.load("late", {})


def test_the_wrapper_that_the_page_shows_can_be_made():
    page = (Path(strategies.__file__).parent / "README.md").read_text(encoding="utf-8")
    command = page.split("take another strategy of Flower")[1].split("```")[1]
    words = command.replace("\\\n", " ").split()
    typed = [word for flag, word in pairwise(words) if flag == "--set"]
    given = dict(parse_override(word) for word in typed)
    given["strategy.name"] = words[words.index("--strategy") + 1]
    wrapper = vars(strategies.load_for(configuration.load(None, given)))
    assert (wrapper["num_sampled_clients"], wrapper["accountant"].config.target_delta) == (20, 1e-5)


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


@pytest.mark.parametrize("name", ["my_half.py", "strategies/my_half.py", "./my_half.py"])
def test_a_file_may_be_named_as_a_path(folder: Path, name: str):
    (folder / "my_half.py").write_text(USERS, encoding="utf-8")
    assert type(strategies.load(name, {})).__name__ == "Half"


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        (
            USERS.replace("aggregate", "agregate"),  # codespell:ignore
            "lacks the method aggregate; .* as 'agregate'",  # codespell:ignore
        ),
        (USERS.replace("def aggregate", "def _sum"), "class Half lacks the method aggregate$"),
        (USERS.replace("(Strategy)", ""), "class Half is not derived from fl_vitlora"),
        (USERS.replace("@dataclass(frozen=True, kw_only=True)", ""), "Half .* is not a dataclass"),
        (USERS.replace("frozen=True, ", ""), r"TypeError: .*; write @dataclass\(frozen=True, kw"),
        (
            USERS.replace("rate: float", "rate: Flaot"),  # codespell:ignore
            "a type of Half|'Flaot' is not defined",  # codespell:ignore
        ),
        (
            USERS.replace("rate: float = 0.5", "rate: float = 'x'"),
            "does not fit its type or range: strategy.rate",
        ),
        ("x = 1\n", r"strategies/mine\.py: expected one class .* found \[\]"),
        (USERS + USERS.replace("Half", "Other"), r"found \['Half', 'Other'\]"),
        ("import nowhere\n", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("class Half(\n", "cannot be imported: SyntaxError"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit: 0"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        (
            USERS + "    def __post_init__(self):\n        1 / 0\n",
            "mine: ZeroDivisionError: division",
        ),
        ("from strategies.fedavg import FedAvg\n", r"expected one class .* found \[\]"),
    ],
)
def test_a_file_that_holds_no_strategy_is_answered(folder: Path, text: str, expectation: str):
    (folder / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=expectation):
        strategies.load("mine", {})
