"""The space of a search: names of settings as everywhere, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.config import Config
from fl_vitlora.config.search import Search, read_search
from fl_vitlora.config.search_dimensions import Choice, Range
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError

SEARCHES = sorted((Path(__file__).parents[2] / "configs" / "searches").glob("*.yaml"))
RATE, EPOCHS = "training.learning_rate", "training.epochs"


def read(space: Any, **more: Any) -> Search:
    return read_search({"search": space, **more}, {})


def test_a_range_has_the_type_of_its_setting_and_not_that_of_its_ends() -> None:
    """With whole ends, a rate would otherwise be 1 or 2 and nothing between."""
    plan = read({RATE: {"from": 1, "to": 2}, EPOCHS: {"from": 1, "to": 3}})
    assert plan.dimensions[RATE] == Range(low=1.0, high=2.0)
    assert plan.dimensions[EPOCHS] == Range(low=1, high=3, whole=True)


def test_steps_are_counted_in_the_numbers_that_are_written() -> None:
    plan = read(
        {RATE: {"from": 0.1, "to": 1, "step": 0.1}, EPOCHS: {"from": 1, "to": 7, "step": 3}}
    )
    assert plan.dimensions[RATE] == Range(low=0.1, high=1.0, step=0.1)


def test_numbers_that_yaml_reads_as_texts_are_numbers() -> None:
    plan = read({RATE: {"from": "1e-4", "to": "1e-2", "log": True}})
    assert plan.dimensions[RATE] == Range(low=1e-4, high=1e-2, log=True)


def test_an_experiment_has_the_settings_of_the_file_and_those_of_the_trial() -> None:
    space = {EPOCHS: {"from": 1, "to": 3}, "size": {"few": {"clients": 2}, "many": {"clients": 9}}}
    plan = read(space, rounds=4, seed=5)
    made = plan.experiment({EPOCHS: 2, "size": "many"})
    assert (made.training.epochs, made.clients, made.rounds, made.seed) == (2, 9, 4, 5)
    assert isinstance(plan.dimensions["size"], Choice)


def test_a_group_in_an_option_keeps_the_other_settings_of_the_group() -> None:
    data = {"name": "photos", "validation_fraction": 0.2}
    space = {"who": {"few": {"data": {"alpha": 1}}, "many": {"data": {"alpha": 2}}}}
    plan = read(space, data=data)
    made = plan.experiment({"who": "many"}).data
    assert (made.name, made.validation_fraction, made.alpha) == ("photos", 0.2, 2)
    assert plan.varied == ["data.alpha"]


def test_what_is_stored_is_read_as_the_same_search() -> None:
    space = {RATE: {"from": 1e-4, "to": 1e-2, "log": True}, EPOCHS: {"from": 1, "to": 5, "step": 2}}
    plan = read({**space, "training.batch_size": [8, 16]}, trials=7, prune=False, goal="loss")
    again = read_search(plan.to_tree(), {})
    assert again.to_tree() == plan.to_tree()
    assert again.dimensions == plan.dimensions


def test_default_rates_are_those_of_the_model_of_a_trial() -> None:
    plan = read({"model.name": ["vit_letters_16", "vit_tiny_patch16_224"]})
    rates = [
        plan.experiment({"model.name": name}).training.learning_rate
        for name in ("vit_letters_16", "vit_tiny_patch16_224")
    ]
    assert rates == [Config().training.learning_rate, 5e-4]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_every_search_of_the_project_can_be_read_and_has_validation_images(path: Path) -> None:
    plan = read_search(read_yaml(str(path)), {})
    assert plan.shared.data.validation_fraction > 0
    assert len(list(plan.corners())) >= 2 * len(plan.dimensions)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"training.learnin_rate": {"from": 1, "to": 2}}, "training.learning_rate"),
        ({"trainin.epochs": [1, 2]}, "training.epochs"),  # codespell:ignore
        ({}, "expected the settings that vary"),
        ([RATE], "expected the settings that vary"),
        ({RATE: {"from": 1e-3}}, "expected both ends"),
        ({RATE: {"from": 1e-3, "to": 1e-2, "lag": True}}, "log"),
        ({RATE: {"from": 1e-2, "to": 1e-3}}, "the smaller one first"),
        ({"training.weight_decay": {"from": 0, "to": 1, "log": True}}, "two numbers above 0"),
        ({RATE: {"from": 0, "to": 1}}, r"\(0, inf\)"),
        ({EPOCHS: {"from": 1.5, "to": 3}}, "whole number"),
        ({EPOCHS: {"from": 1, "to": 3, "step": 5}}, "step"),
        ({EPOCHS: {"from": 1, "to": 4, "step": 2}}, r"to: .*got 4; the nearest ends are 3 and 5$"),
        ({RATE: {"from": 0.1, "to": 0.45, "step": 0.1}}, r"nearest ends are 0\.4 and 0\.5$"),
        ({"finetuning.method": {"from": 1, "to": 2}}, "not a number"),
        ({EPOCHS: [3]}, "one value"),
        ({"training.optimizer": ["adamw", "adamm"]}, "adam"),
        ({"seed": [0, 1]}, "chooses luck"),
        ({"data.validation_fraction": {"from": 0.1, "to": 0.2}}, "different images"),
        ({"data.limit": [50, 100]}, "different images"),
        ({"evaluation.images": [50, 100]}, "different images"),
        ({"a": {"b": {"data": {"limit": 50}}, "c": {"data": {"limit": 90}}}}, "data.limit cannot"),
        (
            {"a": {"b": {"data": {"alpha": 1, "validation_fraction": 0.1}}, "c": {"clients": 2}}},
            "data.validation_fraction cannot vary",
        ),
        ({"a": {"b": {"data": {"alpha": 1}}, "c": {"clients": 2}}, "data.alpha": [1, 2]}, "twice"),
        ({"who": {"a": {"clients": 2, EPOCHS: 1}, "b": {EPOCHS: 2}}, EPOCHS: [1, 2]}, "set twice"),
    ],
)
def test_a_mistake_in_the_space_is_told_in_one_line(space: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        read(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"trials": 0}, "trials"),
        ({"trials": "many"}, "trials"),
        ({"goal": "acuracy"}, "accuracy"),  # codespell:ignore
        ({"goal": ["accuracy"]}, r"goal: expected one of accuracy, loss, got \['accuracy'\]"),
        ({"goal": {"accuracy": 1}}, "goal: expected one of"),
        ({"goal": None}, "goal: expected one of"),
        ({"prune": {"after_round": 2}}, "after_rounds"),
        ({"prune": {"after_rounds": 0}}, "after_rounds"),
        ({"seeds": [0, 1]}, "a comparison has it"),
        ({"clinets": 3}, "clients"),  # codespell:ignore
    ],
)
def test_a_mistake_beside_the_space_is_told_in_one_line(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read({EPOCHS: [1, 2]}, **more)


def test_a_flag_and_the_space_cannot_set_the_same_setting() -> None:
    with pytest.raises(UserError, match="set twice, by a flag"):
        read_search({"search": {EPOCHS: [1, 2]}}, {EPOCHS: 3})
