"""The command `fl-vitlora check`: says whether files are valid, without running anything."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_vitlora import config
from fl_vitlora.command_line import contract_checks
from fl_vitlora.command_line.exits import USER_MISTAKE, tell
from fl_vitlora.config import yaml_text
from fl_vitlora.config.confirmation import check_confirmed
from fl_vitlora.config.grid import Grid, is_grid, read_grid
from fl_vitlora.config.search import is_search, read_search
from fl_vitlora.errors import UserError

Written = tuple[config.Config, frozenset[str]]  # settings, and the paths that a user has set

DESCRIPTION = """Says whether files are valid, with the checks and the messages of the run itself,
and runs nothing. A file may be a configuration, a comparison or a search (YAML), the folder of a
run, of a comparison or of a search, a folder of shards or one shard, a key ring, a client key, a
storage key, the public identity keys of clients, a list of the names of classes or clients (JSON),
or Python code of your own (a strategy, a fine-tuning method, a predictor, an observer or an
attack). The exit code is 0 if all files are valid, 2 if a file is not, and 1 if code breaks a
rule."""
GRID, SEARCH, CONFIG = "grid.yaml", "search.yaml", "config.yaml"


def add(commands: Any) -> None:
    """Adds the command to the parser of the program."""
    parser = commands.add_parser(
        "check",
        help="say whether configurations, keys, shards or code of your own are valid",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a file or a folder")
    parser.add_argument("--key", metavar="RING", help="the key ring that opens shards")
    parser.add_argument(
        "--storage-keys", metavar="PATH", help="the storage keys that open shards: a file or folder"
    )
    parser.add_argument(
        "--trust-strategy",
        nargs="+",
        default=[],
        metavar="NAME",
        help="code from elsewhere that a file may name, package.module:Class",
    )
    parser.set_defaults(command=check)


def check(arguments: argparse.Namespace) -> None:
    """Checks all files, and prints a line about each.

    Raises:
        SystemExit: If a file is not valid, or code breaks a rule.
    """
    code = 0
    for path in arguments.files:
        try:
            kind, checked = check_file(path, arguments)
        except UserError as error:
            tell(f"{path}: {str(error).strip().removeprefix(f'{path}: ')}", "fl-vitlora")
            code = USER_MISTAKE
        except SystemExit as broken:  # a rule is broken, and the findings say which
            code = max(code, int(broken.code or 0))
        else:
            print(f"{path}: valid {kind}; checked: {checked}", flush=True)
    if code:
        raise SystemExit(code)


def check_file(path: Path, arguments: argparse.Namespace) -> tuple[str, str]:
    """Checks one file or folder.

    Returns:
        A pair of texts: what the file is, for example a "search", and what was checked.

    Raises:
        SystemExit: If code breaks a rule; the findings have been printed.
        UserError: If the file is not valid.
    """
    if not path.exists():
        raise UserError("no such file or folder")
    confirmed = frozenset(arguments.trust_strategy)
    if path.is_dir():
        return check_folder(path, confirmed, arguments)
    if path.suffix in (".yaml", ".yml"):
        return check_yaml(path, confirmed)
    if path.suffix == ".py":
        return check_code(path)
    from fl_vitlora.experiment import file_checks

    if path.suffix == ".safetensors":
        return "shard", file_checks.check_shard(path, _keys(arguments))
    if path.suffix == ".json":
        return file_checks.check_names(path)
    return file_checks.check_keys(path)


def check_folder(
    path: Path, confirmed: frozenset[str], arguments: argparse.Namespace
) -> tuple[str, str]:
    """Checks the folder of a run or of a comparison, or a folder of shards."""
    if (path / GRID).is_file():
        return "folder of a comparison", check_yaml(path / GRID, confirmed)[1]
    if (path / SEARCH).is_file():
        return "folder of a search", check_yaml(path / SEARCH, confirmed)[1]
    if (path / CONFIG).is_file():
        from fl_vitlora.experiment.file_checks import check_experiment
        from fl_vitlora.reporting.run_folder import find_run, located

        begun, result = find_run(path)
        checked = check_experiment(
            located(begun, begun, path), _load(confirmed), confirmed, new=False
        )
        state = "finished" if result is not None else "not finished"
        return f"run folder, {state}", checked
    from fl_vitlora.experiment.file_checks import check_folder_of_shards

    return "folder of shards", check_folder_of_shards(path, _keys(arguments))


def check_yaml(path: Path, confirmed: frozenset[str]) -> tuple[str, str]:
    """Checks a configuration, a comparison or a search."""
    tree = yaml_text.read_yaml(str(path), "")
    load = _load(confirmed)
    if is_search(tree):
        plan = read_search(tree, {})
        for experiment in (plan.shared, *plan.corners()):
            check_confirmed(
                experiment, confirmed
            )  # before any code that the file names is imported
        from fl_vitlora.experiment.search_checks import check_search

        check_search(plan, load)
        checked = _check_all({"": (plan.shared, plan.typed({}))}, confirmed)
        return "search", f"both ends of {len(plan.dimensions)} dimensions, one by one; {checked}"
    if is_grid(tree):
        grid = read_grid(tree, {})
        checked = _check_all(_runs(grid), confirmed)
        return "comparison", f"{len(grid.cells)} cells with {len(grid.seeds)} seeds each; {checked}"
    from fl_vitlora.experiment.file_checks import check_experiment

    typed = config.given_paths(tree, {})
    checked = check_experiment(config.resolve(tree, {}), load, confirmed, typed=typed)
    return "configuration", checked


def _runs(grid: Grid) -> dict[str, Written]:
    """Returns the experiments of a comparison that are checked, by the words that name them.

    One seed is checked for each cell. If the shards were made elsewhere, all seeds are checked,
    because the seed of a run must be the seed of its shards.
    """
    runs = {}
    for cell, experiment in grid.runs:
        if experiment.data.shards is not None:
            runs[f"cell {cell.name}, seed {experiment.seed}: "] = (experiment, cell.typed)
        else:
            runs.setdefault(f"cell {cell.name}: ", (experiment, cell.typed))
    return runs


def _check_all(experiments: Mapping[str, Written], confirmed: frozenset[str]) -> str:
    """Checks several experiments, and returns a text: what was checked of the last experiment.

    Args:
        experiments: Each experiment with the paths of the settings that the user has set, by the
            words with which an error about the experiment begins.
        confirmed: The names of code that the user typed on the command line.
    """
    from fl_vitlora.experiment.file_checks import check_experiment

    checked = ""
    for name, (experiment, typed) in experiments.items():
        try:
            checked = check_experiment(experiment, _load(confirmed), confirmed, typed=typed)
        except UserError as error:
            raise UserError(f"{name}{error}") from None
    return checked


def check_code(path: Path) -> tuple[str, str]:
    """Tests the strategy, method, predictor, observer or attack that a Python file defines.

    The file is imported, which runs its code. The user has named it on the command line.
    """
    from fl_vitlora.testing.own_kinds import kind_in_file

    kind, name = kind_in_file(str(path), "check")
    print(f"{path}: {kind}")
    checks: dict[str, Callable[[str], None]] = {
        "strategy": lambda own: contract_checks.check_strategy(
            config.StrategyConfig(name=own), frozenset([own]), verbose=False
        ),
        "method": lambda own: contract_checks.check_named_method(own, {}),
        "predictor": contract_checks.check_predictor,
        "observer": contract_checks.check_observer,
        "attack": contract_checks.check_attack,
    }
    checks[kind](name)
    return kind, f"all rules for code of this kind, with {name}"


def _keys(arguments: argparse.Namespace) -> config.Config:
    """Returns settings that name the keys with which shards are opened."""
    given = {"encryption.key_file": arguments.key, "data.storage_keys": arguments.storage_keys}
    missing = os.devnull + "-no-key"  # a key ring that does not exist opens nothing
    known = {path: value for path, value in given.items() if value is not None}
    return config.load(None, {"encryption.key_file": missing, **known})


def _load(confirmed: frozenset[str]) -> Any:
    """Returns the function that makes the strategy of an experiment."""
    import strategies

    return functools.partial(strategies.load_for, confirmed=confirmed)
