"""Which experiments a comparison consists of: forms of axes, products, unions, labels, refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fl_vitlora.adaptation import policies
from fl_vitlora.config import SCHEMES, full_path
from fl_vitlora.config.grid import Grid, read_grid, to_tree
from fl_vitlora.config.grid_labels import axes_of, folder_name
from fl_vitlora.config.grid_words import read_seeds, read_words
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.methods import attach
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.models.backbone import draft
from fl_vitlora.population.byzantine import hostile

GRIDS = sorted((Path(__file__).parents[2] / "configs" / "grids").glob("*.yaml"))

# what was asked for, and what the answer must contain
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "setting": (
        {"compare": {"finetuning.metod": ["head"]}},  # codespell:ignore
        {},
        ["'finetuning.method'"],
    ),
    "inner setting": (
        {"compare": {"where": {"here": {"client": 1}}}},
        {},
        ["unknown setting 'client'", "'clients'"],
    ),
    "value": ({"compare": {"finetuning.method": ["lorra"]}}, {}, ["did you mean 'lora'?"]),
    "range": ({"compare": {"clients": [5, 0]}}, {}, ["clients", "[1, inf)"]),
    "twice": ({"compare": {"clients": [5, 5]}}, {}, ["clients", "twice"]),
    "empty": ({"compare": {"clients": []}}, {}, ["clients", "no values"]),
    "shape": ({"compare": 3}, {}, ["expected axes"]),
    "flag": ({"compare": {"clients": [3, 5]}}, {"clients": 4}, ["clients", "flag", "axis"]),
    "short form": (
        {"compare": {"strategy": ["fedavg"]}},
        {"strategy.name": "fedprox"},
        ["strategy", "flag", "axis"],
    ),
    "two axes": (
        {"compare": {"clients": [3], "where": {"here": {"clients": 1}}}},
        {},
        ["axis clients", "axis where"],
    ),
    "seed axis": ({"compare": {"seed": [0, 1]}}, {}, ["--seeds"]),
    "folder axis": ({"compare": {"where": {"here": {"out": "x"}}}}, {}, ["out"]),
    "seeds": ({"seeds": 3}, {}, ["seeds", "[0, 1, 2]"]),
    "negative seed": ({"seeds": [0, -1]}, {}, ["seed", "[0, inf)"]),
    "same seed": ({"seeds": [0, 1, 0]}, {}, ["seeds", "twice"]),
    "both seeds": ({"seeds": [0, 1]}, {"seed": 2}, ["seed", "flag"]),
    "baseline": (
        {"compare": {"finetuning.method": ["head", "lora"]}, "baseline": "heat"},
        {},
        ["baseline", "'head'"],
    ),
    "one name for two": (
        {
            "compare": [
                {"finetuning.method": {"x": "head"}},
                {"finetuning.method": {"x": "lora"}},
            ]
        },
        {},
        ["two combinations with different settings have the same name", "'x'"],
    ),
}


def committed(stem: str) -> Grid:
    (path,) = (path for path in GRIDS if path.stem == stem)
    return read_grid(yaml.safe_load(path.read_text()), {})


def names(tree: dict[str, Any]) -> list[str]:
    return [cell.name for cell in read_grid(tree, {}).cells]


def test_several_axes_are_a_product_in_their_order():
    compare = {"finetuning.method": ["head", "lora"], "strategy": ["fedavg", "fedprox"]}
    grid = read_grid({"compare": compare, "seeds": [4, 5]}, {"clients": 3})
    found = [(c.finetuning.method, c.strategy.name, c.seed, c.clients) for _, c in grid.runs]
    assert found == [
        (method, strategy, seed, 3)
        for method in ("head", "lora")
        for strategy in ("fedavg", "fedprox")
        for seed in (4, 5)
    ]


def test_a_list_of_products_is_their_union_and_a_common_cell_stands_once():
    compare = [
        {"finetuning.method": ["head", "lora"], "clients": [3]},
        {"finetuning.method": ["lora"], "clients": [3, 5]},
    ]
    assert names({"compare": compare}) == ["head, 3", "lora, 3", "lora, 5"]


def test_lists_and_schemes_can_be_values_on_the_command_line_too():
    words = read_words(["encryption.steps=[],[pixel_shuffling],EtC"])
    grid = read_grid({"compare": words}, {})
    steps = [cell.config.encryption.steps for cell in grid.cells]
    assert steps == [(), ("pixel_shuffling",), SCHEMES["EtC"]]
    assert [cell.name for cell in grid.cells] == ["none", "pixel_shuffling", "EtC"]


def test_bare_words_are_methods():
    assert read_words(["head", "clients=3,5", "lora"]) == {
        "finetuning.method": ["head", "lora"],
        "clients": [3, 5],
    }


def test_bare_words_may_be_strategies_and_schemes_too():
    words = ["fedavg", "lora", "flwr.serverapp.strategy:FedAdam", "EtC", "fedprox"]
    assert read_words(words, ["fedavg", "fedprox"]) == {
        "strategy": ["fedavg", "flwr.serverapp.strategy:FedAdam", "fedprox"],
        "finetuning.method": ["lora"],
        "encryption.steps": ["EtC"],
    }


@pytest.mark.parametrize("group", ["strategy", "compression.uplink", "compression.downlink"])
def test_a_group_with_a_short_form_can_be_an_axis(group: str):
    values = ["fedavg", "fedprox"] if group == "strategy" else ["int8", "topk(0.1)+int4"]
    grid = read_grid({"compare": read_words([f"{group}={','.join(values)}"])}, {})
    assert [cell.name for cell in grid.cells] == values
    assert len({str(cell.config) for cell in grid.cells}) == 2
    with pytest.raises(UserError, match="is set twice, by a flag and by axis"):
        read_grid({"compare": {group: values}}, {full_path(group): values[0]})


def test_a_comma_within_a_codec_divides_no_list():
    words = read_words(["compression.uplink=int4(128,nearest),int8,topk(0.1)+int4(64, nearest)"])
    assert words == {
        "compression.uplink": ["int4(128,nearest)", "int8", "topk(0.1)+int4(64, nearest)"]
    }


@pytest.mark.parametrize("words", [["0-2"], ["0..2"], ["0,1,2"], ["0", "1-2"]])
def test_seeds_are_numbers_lists_and_ranges(words: list[str]):
    assert read_grid({"seeds": read_seeds(words)}, {}).seeds == (0, 1, 2)


def test_a_file_may_give_a_range_of_seeds():
    assert read_grid({"seeds": "3-5"}, {}).seeds == (3, 4, 5)


def test_what_is_no_yaml_is_told_with_its_place():
    with pytest.raises(UserError, match=r"--compare 'clients=\{3'"):
        read_words(["clients={3"])


def test_a_mapping_labels_the_values_of_a_setting():
    compare = {"encryption.steps": {"plain": [], "all": "ViT-blockwise"}}
    grid = read_grid({"compare": compare}, {})
    assert [cell.labels for cell in grid.cells] == [
        {"encryption.steps": "plain"},
        {"encryption.steps": "all"},
    ]
    assert [len(cell.config.encryption.steps) for cell in grid.cells] == [0, 3]


def test_an_axis_of_any_other_name_changes_several_settings_at_once():
    where = {"centralised": {"clients": 1, "data.partition": "iid"}, "federated": {"clients": 7}}
    grid = read_grid({"compare": {"where": where}}, {})
    found = [(cell.name, cell.config.clients, cell.config.data.partition) for cell in grid.cells]
    assert found == [("centralised", 1, "iid"), ("federated", 7, "dirichlet")]


def test_a_strategy_can_be_varied_with_its_parameters():
    strategies = {"averaging": {"strategy": "fedavg"}, "proximal": {"strategy": "fedprox"}}
    strategies["proximal"] |= {"strategy.mu": "0.1"}
    grid = read_grid({"compare": {"strategy": strategies}}, {})
    assert [(c.config.strategy.name, dict(c.config.strategy.options)) for c in grid.cells] == [
        ("fedavg", {}),
        ("fedprox", {"mu": "0.1"}),
    ]
    assert read_grid(to_tree(grid), {}) == grid


def test_without_axes_there_is_one_cell():
    grid = read_grid({"seeds": [0, 1]}, {"clients": 3})
    assert [(cell.name, config.seed) for cell, config in grid.runs] == [
        ("experiment", 0),
        ("experiment", 1),
    ]


def test_without_seeds_the_seed_is_the_experiments_own():
    assert read_grid({"compare": {"clients": [3]}}, {"seed": 9}).seeds == (9,)


def test_the_folder_is_the_grids_and_not_a_setting_of_its_runs():
    grid = read_grid({"compare": {"clients": [3]}}, {"out": "somewhere"})
    assert grid.out == "somewhere"
    assert [config.out for _, config in grid.runs] == [None]


def test_the_baseline_is_the_first_label_or_the_named_one():
    tree = {"compare": {"finetuning.method": ["head", "lora"], "clients": [3, 5]}}
    assert read_grid(tree, {}).baselines == {"finetuning.method": "head", "clients": "3"}
    named = read_grid({**tree, "baseline": ["lora"]}, {})
    assert named.baselines == {"finetuning.method": "lora", "clients": "3"}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_before_anything_runs(case: str):
    tree, given, parts = MISTAKES[case]
    with pytest.raises(UserError) as told:
        read_grid(tree, given)
    assert [part for part in parts if part not in str(told.value)] == []


def test_a_grid_reads_back_equal():
    where = {"centralised": {"clients": 1}, "federated": {"clients": 7}}
    compare = [
        {"finetuning.method": ["head", "lora"], "where": where},
        {"encryption.steps": {"plain": [], "all": "EtC"}, "strategy": ["fedavg", "fedprox"]},
    ]
    tree = {"title": "A title", "compare": compare, "seeds": [1, 2], "baseline": "plain"}
    grid = read_grid(tree, {"rounds": 3})
    assert read_grid(yaml.safe_load(write_yaml(to_tree(grid))), {}) == grid


def test_names_of_folders_are_safe_and_not_too_long():
    assert folder_name({"data.name": "../a b|c", "x": "*"}, 0) == "a-b-c-seed0"
    assert folder_name({"x": "*"}, 0) == "cell-seed0"
    assert len(folder_name({"x": "y" * 500}, 10)) < 120


@given(
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3),
    seed=st.integers(0, 2**63),
)
@example(labels={"data.name": ".."}, seed=0)
@example(labels={"data.name": "/etc/passwd", "x": "../../.."}, seed=0)
@example(labels={"x": "C:\\a\0b\n"}, seed=0)
def test_no_label_leads_out_of_the_folder_of_a_grid(labels: dict[str, str], seed: int):
    name = folder_name(labels, seed)
    assert Path("grid", name).parent == Path("grid")
    assert Path("grid", name).resolve().parent == Path("grid").resolve()
    assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]*", name)
    assert len(name) < 120


def test_axes_keep_the_order_in_which_they_appear():
    assert axes_of([{"a": "2"}, {"b": "x", "a": "1"}, {"a": "2"}]) == {"a": ["2", "1"], "b": ["x"]}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_committed_grids_are_valid_and_begin_with_their_command(path: Path):
    text = path.read_text()
    assert text.splitlines()[0] == f"# python simulate.py --config configs/grids/{path.name}"
    assert read_grid(yaml.safe_load(text), {}).cells


@pytest.mark.parametrize("name", ["methods", "methods_equal_bytes"])
def test_every_method_of_a_committed_grid_fits_the_model(name: str):
    for cell in committed(name).cells:
        method = method_of(cell.config.finetuning)
        drafted = draft(cell.config.model, classes=10).model
        if not any(part.reads_weights for _, part in method.parts):
            attach(drafted, method, 0)


def test_the_table_of_the_readme_has_its_six_rows():
    assert [cell.name for cell in committed("default_job").cells] == [
        "lora+patch_embed, encrypted",
        "lora, encrypted",
        "head, encrypted",
        "full, encrypted",
        "lora+patch_embed, plain",
        "full, plain",
    ]


def test_all_of_flowers_strategies_are_compared_but_those_for_trees():
    exported = set(flwr.serverapp.strategy.__all__) - {"Strategy", "Result"}
    shipped = {name for name in exported if not name.startswith("FedXgb")}
    cells = committed("flower_strategies").cells
    named = {cell.config.strategy.name for cell in cells}
    assert named == {f"flwr.serverapp.strategy:{name}" for name in shipped}


def test_with_the_attack_two_clients_are_hostile_in_each_way_and_without_it_none():
    for cell, config in committed("byzantine").runs:
        policies.check(config)
        kinds = () if cell.labels["hostile"] == "none" else ("sign_flip", "scale", "nan")
        found = {kind: len(clients) for kind, clients in hostile(config).items()}
        assert found == dict.fromkeys(kinds, 2)


def test_more_runs_than_anybody_waits_for_are_refused_before_they_are_listed() -> None:
    axes = {"clients": list(range(2, 1002)), "rounds": list(range(1, 1001))}
    with pytest.raises(
        UserError, match="compare: too many runs, 1000000 combinations with 3 seeds each"
    ):
        read_grid({"compare": axes, "seeds": [0, 1, 2]}, {})


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="unknown setting 1"):
        read_grid({"compare": {"where": {"here": {1: 2}}}}, {})


def test_a_group_in_a_choice_keeps_the_other_settings_of_the_group() -> None:
    """If the group were replaced, the runs would train on the default images."""
    cases = {"iid": {"data": {"partition": "iid"}}, "few": {"data": {"limit": 9}, "clients": 2}}
    grid = read_grid({"compare": {"case": cases}, "data": {"name": "photos", "alpha": 1}}, {})
    found = [(c.config.data.name, c.config.data.partition, c.config.data.limit) for c in grid.cells]
    assert found == [("photos", "iid", None), ("photos", "dirichlet", 9)]
    assert {cell.config.data.alpha for cell in grid.cells} == {1}
    assert read_grid(to_tree(grid), {}) == grid


def test_a_strategy_in_a_choice_has_only_its_own_parameters() -> None:
    cases = {"prox": {"strategy": {"name": "fedprox", "mu": 0.5}}, "usual": {"data": {}}}
    grid = read_grid({"compare": {"case": cases}, "strategy": {"name": "krum", "f": 1}}, {})
    assert [cell.config.strategy.options for cell in grid.cells] == [{"mu": 0.5}, {"f": 1}]
