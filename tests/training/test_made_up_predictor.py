"""A predictor that nobody has seen before: one new file, and the name of its class."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fl_vitlora.config import load
from fl_vitlora.config.confirmation import check_confirmed, flags_for
from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.errors import UserError
from fl_vitlora.training.prediction import predictor_of
from tests.made_up_places import simulate_in

PREDICTOR = "made_up_predictors:Undecided"
SOURCE = """
class Undecided:
    adapts = False

    def __call__(self, model, images):
        return 0 * model(images)


class Silent:
    def __call__(self, model, images):
        return model(images)


class Asking(Undecided):
    def __init__(self, rate):
        self.rate = rate
"""
SMALL = ["--clients", "2", "--rounds", "1", "--set", "data.limit=40"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of one file."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "made_up_predictors.py").write_text(SOURCE, encoding="utf-8")
    return folder


@pytest.mark.parametrize("by", ["central", pytest.param("clients", marks=pytest.mark.slow)])
def test_server_and_clients_measure_what_a_made_up_predictor_answers(by: str, place: Path):
    """Equal logits for ten classes have a cross-entropy of log 10."""
    done = simulate_in(
        place,
        *(*SMALL, "--out", by, "--set", f"evaluation.by={by}"),
        *("--set", f"evaluation.predictor={PREDICTOR}"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(line) for line in (place / by / "rounds.jsonl").open()]
    assert line["loss"] == pytest.approx(math.log(10), rel=1e-6)


def test_a_predictor_that_only_a_file_names_is_not_imported(place: Path):
    text = f"evaluation:\n  predictor: {PREDICTOR}\n"
    (place / "predictor.yaml").write_text(text, encoding="utf-8")
    refused = simulate_in(place, "--config", "predictor.yaml", *SMALL)
    assert refused.returncode == 2
    assert f"--trust-strategy {PREDICTOR}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_predictor_is_confirmed_by_its_name():
    config = load(None, {"evaluation.predictor": PREDICTOR})
    check_confirmed(config, [PREDICTOR])
    with pytest.raises(UserError, match="a file names this code"):
        check_confirmed(config, ["made_up_predictors:Other"])
    assert flags_for(config) == f" --trust-strategy {PREDICTOR}"


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_ships_is_found_and_needs_no_word(name: str):
    config = load(None, {"evaluation.predictor": name})
    check_confirmed(config)
    assert isinstance(predictor_of(config.evaluation.predictor).adapts, bool)


@pytest.mark.parametrize("given", ["plane", "mine", "mine:", "a b:C", "", 3, ["plain"]])
def test_what_is_no_name_is_refused_in_one_line(given: object):
    with pytest.raises(UserError, match=r"evaluation\.predictor") as refused:
        load(None, {"evaluation.predictor": given})
    assert "plain" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("made_up_predictors:Undecidad", "did you mean 'Undecided'"),
        ("made_up_predictors:Silent", "the attribute adapts, which must be True or False"),
        ("made_up_predictors:Asking", "can be made without arguments: TypeError: .*rate"),
        ("not_there_at_all:Mine", "cannot be imported: ModuleNotFoundError"),
        ("fl_vitlora.training.prediction:Plane", "did you mean 'Plain'"),
    ],
)
def test_what_is_no_predictor_is_refused_in_one_line(
    name: str, told: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(place))
    with pytest.raises(UserError, match=told) as refused:
        predictor_of(name)
    assert "\n" not in str(refused.value)
