"""An experiment reads back as it was written; every mistake is answered with path and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.config import (
    SCHEMES,
    Config,
    load,
    to_mapping,
    to_yaml,
)
from fl_vitlora.config.settings import explanations, from_mapping
from fl_vitlora.config.yaml_text import parse_override, read_yaml
from fl_vitlora.errors import UserError

STEPS = ("block_scrambling", "pixel_shuffling", "negative_positive")

OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "clients": st.integers(1, 10**6),
        "fraction": st.floats(0, 1, exclude_min=True),
        "out": st.none() | st.text("abc/ #:'\n", min_size=1),
        "data.alpha": st.floats(1e-9, 1e9),
        "data.limit": st.none() | st.integers(1, 10**6),
        "model.image_size": st.none() | st.lists(st.integers(1, 999), min_size=1, max_size=2),
        "encryption.steps": st.permutations(STEPS).flatmap(
            lambda order: st.integers(0, 3).map(lambda n: order[:n])
        ),
        "training.learning_rate": st.floats(1e-300, 1e300),
        "training.clip_norm": st.none() | st.floats(1e-9, 1e9),
        "engine.precision": st.sampled_from(["auto", "float32", "bfloat16"]),
        "strategy.mu": st.floats(0, 1) | st.integers(0, 3) | st.text("xyz 1.e"),
    },
)


def write(folder: Path, text: str) -> str:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_file_and_flags_it_is_the_main_job():
    config = load(None)
    assert config == Config()
    assert (config.clients, config.fraction, config.data.name) == (20, 1.0, "digits")
    assert config.encryption.steps == STEPS
    assert (config.finetuning.method, config.strategy.name) == ("lora+patch_embed", "fedavg")


@pytest.mark.parametrize(
    ("value", "size"), [(32, (32,)), ([32], (32,)), ([32, 48], (32, 48)), (None, None)]
)
def test_an_image_has_one_side_or_two(value: Any, size: tuple[int, ...] | None):
    assert load(None, {"model.image_size": value}).model.image_size == size


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_stands_for_its_steps(name: str):
    config = load(None, {"encryption.steps": name})
    assert config.encryption.steps == SCHEMES[name]
    assert load(None, {"encryption.steps": list(SCHEMES[name])}) == config


@given(overrides=OVERRIDES)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
):
    config = load(None, overrides)
    assert load(write(tmp_path_factory.mktemp("config"), to_yaml(config))) == config


@given(overrides=OVERRIDES)
def test_a_config_becomes_plain_values_that_json_and_yaml_know(overrides: dict[str, Any]):
    tree = to_mapping(load(None, overrides))
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path):
    path = write(tmp_path, "clients: 7\nrounds: 3\ntraining: {epochs: 5}\n")
    config = load(path, {"rounds": 4})
    assert (config.clients, config.rounds, config.training.epochs, config.seed) == (7, 4, 5, 0)


def test_an_empty_file_is_the_default_experiment(tmp_path: Path):
    assert load(write(tmp_path, "# nothing yet\n")) == Config()


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_numbers_read_as_people_write_them(text: str):
    path, value = parse_override(f"training.learning_rate={text}")
    assert load(None, {path: value}).training.learning_rate == 0.001


def test_a_whole_number_may_stand_for_a_float():
    assert load(None, {"finetuning.alpha": 16}).finetuning.alpha == 16.0


@pytest.mark.parametrize("text", ["strategy: fedprox\n", "strategy:\n  name: fedprox\n"])
def test_a_strategy_may_be_named_in_short(tmp_path: Path, text: str):
    assert load(write(tmp_path, text)).strategy.name == "fedprox"


def test_a_strategy_named_in_short_can_be_overridden(tmp_path: Path):
    path = write(tmp_path, "strategy: fedavg\n")
    strategy = load(path, {"strategy.name": "fedprox", "strategy.mu": 0.5}).strategy
    assert (strategy.name, dict(strategy.options)) == ("fedprox", {"mu": 0.5})


def test_what_stands_beside_the_name_of_a_strategy_are_its_options(tmp_path: Path):
    path = write(tmp_path, "strategy: {name: fedprox, mu: 0.5}\n")
    strategy = load(path, {"strategy.extra": [1, 2]}).strategy
    assert (strategy.name, dict(strategy.options)) == ("fedprox", {"mu": 0.5, "extra": [1, 2]})


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("strategy: {name: W, strategy: {name: M, eta: 1}}\n", {}),
        ("strategy: {name: W, strategy: M}\n", {"strategy.strategy.eta": 1}),
        ("strategy: W\n", {"strategy.strategy.eta": 1, "strategy.strategy": "M"}),
        ("", {"strategy": "W", "strategy.strategy": "M", "strategy.strategy.eta": 1}),
        ("strategy: V\n", {"strategy": {"name": "W", "strategy": {"name": "M", "eta": 1}}}),
    ],
)
def test_a_strategy_may_wrap_another(tmp_path: Path, text: str, overrides: dict[str, Any]):
    config = load(write(tmp_path, text), overrides)
    assert config.strategy.name == "W"
    assert config.strategy.options == {"strategy": {"name": "M", "eta": 1}}
    assert load(write(tmp_path, to_yaml(config))) == config


def test_a_wrapped_strategy_is_the_same_however_it_is_named():
    short = load(None, {"strategy": {"name": "W", "strategy": "M"}})
    assert short == load(None, {"strategy": "W", "strategy.strategy.name": "M"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a.b=x=y", ("a.b", "x=y")),
        (" a.b = [p, q]", ("a.b", ["p", "q"])),
        ("a.b=", ("a.b", None)),
        ("a.b=true", ("a.b", True)),
    ],
)
def test_overrides_are_a_path_and_a_yaml_value(text: str, expected: tuple[str, Any]):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["clients", "=3", "  =3", "clients=[1,"])
def test_what_is_no_override_is_refused(text: str):
    with pytest.raises(UserError, match=r"--set .*"):
        parse_override(text)


@pytest.mark.parametrize(
    ("overrides", "path", "expectation"),
    [
        ({"client": 3}, "client", "did you mean 'clients'"),
        ({"training.epoch": 3}, "training.epoch", "did you mean 'training.epochs'"),
        ({"clients": 2.5}, "clients", "a whole number"),
        ({"clients": True}, "clients", "a whole number"),
        ({"clients": "20"}, "clients", "a whole number"),
        ({"clients": None}, "clients", "a whole number"),
        ({"data.name": 3}, "data.name", "a text"),
        ({"privacy.secure_aggregation": 1}, "privacy.secure_aggregation", "true or false"),
        ({"fraction": "half"}, "fraction", "a number"),
        ({"fraction": True}, "fraction", "a number"),
        ({"fraction": [1]}, "fraction", "a number"),
        ({"training": 3}, "training", "a mapping"),
        ({"encryption.steps": 3}, "encryption.steps", "a list"),
        ({"encryption.steps": ["rot13"]}, "encryption.steps", "block_scrambling"),
        ({"encryption.steps": "etc"}, "encryption.steps", "block_scrambling"),
        ({"encryption.scope": "clients"}, "encryption.scope", "did you mean 'client'"),
        ({"finetuning.patch_embedding": "align"}, "finetuning.patch_embedding", "'aligned'"),
        ({"evaluation.by": "server"}, "evaluation.by", "central"),
        ({"model.image_size": [0]}, "model.image_size", "[1, inf)"),
        ({"model.image_size": [8, 8, 8]}, "model.image_size", "height and width"),
        ({"model.image_size": []}, "model.image_size", "height and width"),
        ({"model.image_size": "big"}, "model.image_size", "a whole number"),
        ({"data.partition": "dirichle"}, "data.partition", "did you mean 'dirichlet'"),
        ({"finetuning.method": "lora+"}, "finetuning.method", "did you mean 'lora"),
        ({"clients": 0}, "clients", "[1, inf)"),
        ({"fraction": 0}, "fraction", "(0, 1]"),
        ({"fraction": 1.01}, "fraction", "(0, 1]"),
        ({"fraction": float("nan")}, "fraction", "a number"),
        ({"seed": -1}, "seed", "[0, inf)"),
        ({"data.test_fraction": 1}, "data.test_fraction", "(0, 1)"),
        ({"training.momentum": 1.0}, "training.momentum", "[0, 1)"),
        ({"training.learning_rate": float("inf")}, "training.learning_rate", "(0, inf)"),
        ({"training.clip_norm": 0}, "training.clip_norm", "(0, inf)"),
        (
            {"encryption.steps": ["pixel_shuffling", "pixel_shuffling"]},
            "encryption.steps",
            "twice",
        ),
        ({"finetuning.targets": ["q", "q"]}, "finetuning.targets", "twice"),
        ({"finetuning.targets": []}, "finetuning.targets", "at least one of q, k, v"),
        ({"clients.many": 3}, "clients", "a whole number"),
        ({"clients": 3, "clients.many": 3}, "clients.many", "'clients' is a single value"),
    ],
)
def test_mistakes_name_path_and_expectation(overrides: dict[str, Any], path: str, expectation: str):
    with pytest.raises(UserError) as caught:
        load(None, overrides)
    assert path in str(caught.value)
    assert expectation in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ("clients: [1", "not valid YAML"),
        ("- clients\n- 3\n", "expected settings and values"),
        ("just a text", "expected settings and values"),
        ("clients: 3\ntraining:\n  epohcs: 2\n", "did you mean 'training.epochs'"),
        ("strategy: 5\n", "strategy.name: expected a text"),
    ],
)
def test_files_that_are_no_experiments_are_refused(tmp_path: Path, text: str, expectation: str):
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text))
    assert expectation in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not valid YAML"):
        load(str(tmp_path / "model.yaml"))


def test_a_missing_file_is_answered_with_what_is_there(tmp_path: Path):
    write(tmp_path, "clients: 3\n")
    with pytest.raises(UserError, match=r"no such file .*experiment\.yaml"):
        load(str(tmp_path / "experimnet.yaml"))  # codespell:ignore
    with pytest.raises(UserError, match="no YAML file there"):
        load(str(tmp_path / "nowhere" / "experiment.yaml"))


def test_every_setting_is_explained_and_can_be_set_to_its_default():
    settings = [setting for setting in explanations(Config) if not setting[0].endswith(".NAME")]
    assert len(settings) > 40
    assert all(explanation for _, _, explanation in settings)
    overrides = {path: default for path, default, _ in settings}
    assert load(None, overrides) == Config()


def test_a_key_that_stands_twice_is_refused_and_not_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("training:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(UserError, match="'epochs' occurs twice"):
        load(str(path))


def test_a_mapping_that_is_merged_in_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "compare:\n- &first {clients: [3], rounds: [1]}\n- {<<: *first, clients: [4]}\n"
    )
    assert read_yaml(str(path))["compare"][1] == {"clients": [4], "rounds": [1]}


def test_a_scheme_stands_for_its_steps_and_alone() -> None:
    assert load(None, {"encryption.steps": "LE"}).encryption.steps == ("nibble_shuffling",)
    with pytest.raises(UserError, match="expected the scheme LE alone"):
        load(None, {"encryption.steps": ["LE", "pixel_shuffling"]})


def test_explanations_list_the_values_of_settings_that_have_only_a_few() -> None:
    told = {path: text for path, _, text in explanations(Config)}
    assert told["encryption.scope"].endswith("Choices: shared, client, image, block.")
    assert told["finetuning.targets"].endswith("Choices: q, k, v, proj, fc1, fc2.")
    assert "Choices" not in told["clients"]


@pytest.mark.parametrize("text", ["2024-13-45", "0x_", "!!int one", "!!bool perhaps", "9" * 5000])
def test_a_value_that_python_objects_to_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="is not a YAML value"):
        parse_override(f"clients={text}")
    with pytest.raises(UserError, match=r"not valid YAML: .* line 2, column 10"):
        load(write(tmp_path, f"rounds: 3\nclients: {text}\n"))


@pytest.mark.parametrize(("text", "meaning"), [("1:30", 90), ("010", 8), ("-1_0:00.5", -600.5)])
def test_a_number_that_means_another_one_in_yaml_is_refused(text: str, meaning: float) -> None:
    with pytest.raises(UserError, match=f"means {meaning} in YAML"):
        parse_override(f"training.epochs={text}")


@pytest.mark.parametrize("text", ["'1:30'", "0", "0.10", "0x1f", "1_000", "1:30pm", "a:b"])
def test_other_numbers_and_texts_are_taken(text: str) -> None:
    assert parse_override(f"strategy.x={text}") == ("strategy.x", yaml.safe_load(text))


@pytest.mark.parametrize("text", ["&all [*all]", "[" * 30 + "]" * 30, "[" * 9999])
def test_what_is_nested_too_deep_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="nested deeper than 20 levels"):
        parse_override(f"strategy.x={text}")


def test_values_that_aliases_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 15))]
    with pytest.raises(UserError, match="more than 100000 values"):
        load(write(tmp_path, "\n".join(lines)))


def test_a_long_value_is_told_in_short() -> None:
    with pytest.raises(UserError) as caught:
        load(None, {"clients": ["many"] * 5000})
    assert str(caught.value).startswith("clients: expected a whole number, got ['many', 'many',")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "n" * 256, "n/" * 1001])
def test_a_text_that_can_name_no_file_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="out: expected "):
        load(None, {"out": name})


evaluated: list[str] = []


def number() -> type[int]:
    evaluated.append("number")
    return int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Settings whose annotation counts how often it is evaluated."""

    value: number() = 1  # type: ignore[valid-type]


def test_the_annotations_of_a_class_are_evaluated_once():
    for value in (2, 3):
        assert from_mapping(Counted, {"value": value}).value == value
    assert evaluated == ["number"]
