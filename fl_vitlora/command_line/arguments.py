"""Reads the experiment or comparison that the user describes by flags, `--set` and a YAML file."""

from __future__ import annotations

import argparse
from typing import Any

from fl_vitlora import config
from fl_vitlora.command_line.flags import FLAGS, TEXTS
from fl_vitlora.config import confirmation, yaml_text
from fl_vitlora.config.grid import Grid, is_grid, read_grid
from fl_vitlora.config.grid_words import is_several, read_seeds, read_words
from fl_vitlora.config.search import Search, is_search, read_search
from fl_vitlora.errors import UserError


def read_config(arguments: argparse.Namespace) -> config.Config:
    """Returns the settings of the experiment that flags, `--set` and the file describe.

    If a setting has several values, `--set` has priority over its flag, and the flag over the file.
    """
    return config.load(arguments.config, read_overrides(arguments))


def read_typed(arguments: argparse.Namespace) -> frozenset[str]:
    """Returns the dotted paths of the settings that flags, `--set` or the file give."""
    tree = {} if arguments.config is None else yaml_text.read_yaml(arguments.config)
    return config.given_paths(tree, read_overrides(arguments))


def read_comparison(arguments: argparse.Namespace) -> Grid | None:
    """Returns the comparison that the flags or the file describe, or None if they describe none."""
    tree = {} if arguments.config is None else yaml_text.read_yaml(arguments.config)
    if is_search(tree):
        raise UserError(
            f"--config {arguments.config}: this file describes a search; use --search "
            f"{arguments.config}"
        )
    if arguments.compare:
        import strategies

        tree["compare"] = read_words(arguments.compare, strategies.available())
    if arguments.seeds:
        tree["seeds"] = read_seeds(arguments.seeds)
    return read_grid(tree, read_overrides(arguments)) if is_grid(tree) else None


def read_plan(arguments: argparse.Namespace) -> Search:
    """Returns the search that `--search`, flags and `--set` describe.

    Raises:
        UserError: If the file has no key `search`, or the search is not valid.
    """
    tree = yaml_text.read_yaml(arguments.search, "--search")
    if not is_search(tree):
        raise UserError(
            f"--search {arguments.search}: expected the key search, with the settings that vary; "
            "without this key, the file is for --config"
        )
    return read_search(tree, read_overrides(arguments))


def read_strategy(arguments: argparse.Namespace) -> config.StrategyConfig:
    """Returns the name and the parameters of the strategy that `--check-strategy` names."""
    overrides, name = read_overrides(arguments), arguments.check_strategy
    for path in {"strategy", "strategy.name"} & overrides.keys():
        raise UserError(
            f"--check-strategy {name} already names the strategy; remove the setting "
            f"{path}={overrides[path]}"
        )
    return config.load(arguments.config, overrides | {"strategy.name": name}).strategy


def read_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns a dictionary: the dotted paths of all settings from flags and `--set`, with values.

    If both a flag and `--set` give a value to a setting, the dictionary has the value of `--set`.
    """
    given = vars(arguments)
    if given["seed"] is not None and is_several(given["seed"]):
        raise UserError(
            f"--seed {given['seed']}: expected one seed; for several seeds use "
            f"--seeds {given['seed']}"
        )
    overrides: dict[str, Any] = {}
    for flag, entry in FLAGS.items():
        path, value = entry.path, given[entry.path]
        if value is not None and path in TEXTS:
            overrides[path] = value
        elif value is not None:
            try:
                overrides |= [yaml_text.parse_override(f"{path}={value}")]
            except UserError as error:
                raise UserError(f"{flag}: {error}") from None
    return overrides | dict(yaml_text.parse_override(text) for text in arguments.overrides)


def confirmed_by(arguments: argparse.Namespace) -> frozenset[str]:
    """Returns all values that the user typed on the command line.

    The program runs code from elsewhere, or connects to a Ray cluster, only with the user's
    permission. Typing the name of the code or of the cluster counts as permission
    (`fl_vitlora.config.confirmation`).
    """
    typed = [read_overrides(arguments), read_words(arguments.compare or ())]
    named = [arguments.trust_strategy or (), arguments.check_strategy]
    return frozenset(confirmation.texts_in([*typed, *named]))
