"""Reads an experiment from a YAML file and from single settings, and writes it as YAML.

The dotted path of a setting names the setting and its groups, for example ``training.epochs``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fl_vitlora.config.rates import rates_of
from fl_vitlora.config.renamed import missing_in, with_present_names
from fl_vitlora.config.schema import AUTO, PATHS, RATES, SHORT, Config
from fl_vitlora.config.settings import explanations, from_mapping, read_path, type_of
from fl_vitlora.config.yaml_text import read_yaml, write_yaml
from fl_vitlora.errors import UserError, unknown


def load(path: str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads an experiment from defaults, a YAML file and overrides, and checks its values.

    An override replaces a value of the file, and a value of the file replaces a default.

    Args:
        path: The path of a YAML file, or None.
        overrides: A mapping from the dotted paths of settings to values, for example
            ``{"training.epochs": 2}``.

    Returns:
        The experiment, with a value for every setting.

    Raises:
        UserError: When a setting is unknown, a value is not valid, or the file cannot be read.

    Example:
        >>> load(None, {"training.learning_rate": "1e-3"}).training.learning_rate
        0.001
    """
    return resolve({} if path is None else read_yaml(path), overrides or {})


def load_run(path: str) -> Config:
    """Reads the configuration in a run folder, which an older version may have written.

    Args:
        path: The path of the file.

    Raises:
        UserError: When a setting is unknown, a value is not valid, or the file cannot be read.
    """
    tree = read_yaml(path)
    return resolve(tree, missing_in(tree))


def resolve(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """Builds an experiment from nested plain values and overrides, and checks its values.

    Plain values are numbers, texts, lists and mappings. The nested values may omit any
    setting, and the overrides may also omit any setting.

    Example:
        >>> resolve({"training": {"epochs": 2}}, {"strategy": "fedprox"}).strategy.name
        'fedprox'
    """
    whole = nested(overrides, _spell_out(with_present_names(copy.deepcopy(dict(tree)))))
    spelt_out = _gather_strategy_options(_spell_out(_without_auto(whole)))
    _check_names(Config, spelt_out)
    config = from_mapping(Config, _with_homes(spelt_out))
    _check_lists(config)
    return _with_rates(config, whole)


def nested(settings: Mapping[str, Any], below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns settings with dotted paths in the form that a YAML file has.

    Args:
        settings: The values by dotted path, or by the name of a group.
        below: Nested values, to which `settings` are added; a value of `settings` replaces a value
            with the same path. This function may change `below`.

    Example:
        >>> nested({"data.limit": 50, "data.alpha": 1, "strategy": "fedavg"})
        {'data': {'limit': 50, 'alpha': 1}, 'strategy': {'name': 'fedavg'}}
    """
    whole = dict(below or {})
    named = [
        (name if isinstance(value, Mapping) else full_path(name), value)
        for name, value in settings.items()
    ]
    for path, value in sorted(named, key=lambda pair: pair[0].count(".")):  # groups come first
        _graft(whole, path, copy.deepcopy(value))
    return whole


def given_paths(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> frozenset[str]:
    """Returns the dotted paths of all settings that a file, a program or an override sets.

    Args:
        tree: The nested values of a file or a program.
        overrides: Values by their dotted paths.

    Example:
        >>> sorted(given_paths({"training": {"epochs": 2}}, {"strategy": "fedprox"}))
        ['strategy.name', 'training.epochs']
    """
    whole = _spell_out(with_present_names(copy.deepcopy(dict(tree))))
    for dotted, value in overrides.items():
        _graft(whole, dotted if isinstance(value, Mapping) else full_path(dotted), value)
    return frozenset(path for path, _ in _leaves(_spell_out(whole)))


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted path; each group is replaced by its single settings.

    If the result is given to `nested`, its settings are added to an existing group, while a whole
    group would replace the existing group. A strategy and its parameters stay together as one
    group, because the parameters of one strategy have no meaning for another strategy.

    Args:
        settings: The values by dotted path, or by the name of a group.

    Example:
        >>> flat({"data": {"limit": 50, "alpha": 1}, "strategy": {"name": "fedprox", "mu": 1}})
        {'data.limit': 50, 'data.alpha': 1, 'strategy': {'name': 'fedprox', 'mu': 1}}
    """
    found: dict[str, Any] = {}
    for path, value in settings.items():
        mapping = isinstance(path, str) and isinstance(value, Mapping)
        whole = path == "strategy" and "name" in value if mapping else True
        if not whole and dataclasses.is_dataclass(type_of(Config, path)):
            found |= flat({f"{path}.{key}": each for key, each in value.items()})
        else:
            found[path] = value
    return found


def written(config: Config, given: Collection[str]) -> dict[str, Any]:
    """Returns the settings of an experiment that somebody has set, as nested plain values.

    An experiment on shards that owners made elsewhere is stored in this form, because the settings
    that nobody has set are taken from the shards. Other experiments are stored with all settings.

    Args:
        config: The experiment.
        given: The dotted paths of the settings that the user has set.

    Example:
        >>> written(resolve({}, {"data.shards": "site", "rounds": 20}), {"data.shards", "rounds"})
        {'rounds': 20, 'data': {'shards': 'site'}}
    """
    return nested({path: value for path, value in _leaves(to_mapping(config)) if path in given})


def _without_auto(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Removes learning rates that are None or "auto", so that the model's defaults are used."""
    training = tree.get("training")
    if not isinstance(training, Mapping):
        return dict(tree)
    kept = {k: v for k, v in training.items() if not (k in RATES and v in (None, AUTO))}
    return {**tree, "training": kept}


def _with_rates(config: Config, tree: Mapping[str, Any]) -> Config:
    """Sets all learning rates that are not in `tree` to the default rates of the model."""
    given = _without_auto(tree).get("training") or {}
    rates = dataclasses.asdict(rates_of(config.model.name))
    own = {name: rate for name, rate in rates.items() if name not in given}
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **own))


@functools.cache
def paths() -> tuple[str, ...]:
    """Lists the dotted paths of all settings."""
    return tuple(path for path, _, _ in explanations(Config))


def full_path(dotted: str) -> str:
    """Returns the full path of a setting, because some groups can be given as a single value.

    For example, the value of the group ``strategy`` is the value of its setting ``strategy.name``.

    Example:
        >>> full_path("compression.uplink"), full_path("clients")
        ('compression.uplink.codec', 'clients')
    """
    group, _, last = dotted.rpartition(".")
    whole = f"{dotted}.{SHORT.get(last, '')}"
    wraps = last == "strategy" and f"{group}.".startswith("strategy.")
    return whole if wraps or whole in paths() else dotted


def unknown_setting(dotted: object, siblings: Iterable[str] = ()) -> UserError:
    """Returns an error about an unknown setting. The message suggests the most similar setting.

    Args:
        dotted: The unknown name, as it was written.
        siblings: The settings of the group in which the unknown name was written. The error prefers
            to suggest them. By default the error may suggest any setting.
    """
    return unknown("setting", dotted, siblings or paths(), elsewhere=paths())


def to_mapping(config: Any) -> dict[str, Any]:
    """Converts a config into nested plain values, which YAML and JSON can represent."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    tree: dict[str, Any] = plain(config)
    if "options" in tree.get("strategy", {}):
        tree["strategy"] |= tree["strategy"].pop("options")
    return tree


def to_yaml(config: Config) -> str:
    """Returns an experiment as YAML, from which `load` reads an equal experiment."""
    return write_yaml(to_mapping(config))


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Finds the settings in which two experiments differ.

    Returns:
        A dictionary: the dotted path of each such setting, with its pair of values.

    Example:
        >>> from fl_vitlora.config.schema import TrainingConfig
        >>> differences(Config(), Config(training=TrainingConfig(epochs=2)))
        {'training.epochs': (1, 2)}
    """
    ours, theirs = (dict(_leaves(to_mapping(config))) for config in (one, other))
    paths = dict.fromkeys([*ours, *theirs])
    pairs = {path: (ours.get(path), theirs.get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _graft(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a value in nested mappings at a dotted path, and creates missing mappings."""
    *branches, leaf = dotted.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
        if not isinstance(tree, dict):
            raise UserError(f"{dotted}: {branch!r} is a single value; expected a group of settings")
    tree[leaf] = value


def _spell_out(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces a single value for a group, such as ``strategy: fedavg``, by a mapping."""
    whole = dict(tree)
    for key, value in tree.items():
        if key in SHORT and not isinstance(value, Mapping):
            whole[key] = {SHORT[key]: value}
        elif key in (*SHORT, "compression") and isinstance(value, Mapping):
            whole[key] = _spell_out(value)
    return whole


def _gather_strategy_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Moves all settings of a strategy, except its name, into the mapping `options`."""
    strategy = tree.get("strategy")
    if not isinstance(strategy, Mapping):
        return dict(tree)
    own = {key: value for key, value in strategy.items() if key != "name"}
    name = {"name": strategy["name"]} if "name" in strategy else {}
    return {**tree, "strategy": {**name, "options": own}}


def _with_homes(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Replaces ``~`` by the home folder in the settings that are paths."""
    whole = dict(tree)
    for key, value in tree.items():
        if isinstance(value, Mapping):
            whole[key] = _with_homes(value, f"{path}{key}.")
        elif f"{path}{key}" in PATHS and isinstance(value, str):
            whole[key] = read_path(value, f"{path}{key}")
    return whole


def _check_names(kind: type[Any], tree: Mapping[str, Any], path: str = "") -> None:
    """Raises an error if a setting does not exist; the error suggests settings of all groups."""
    hints = typing.get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            raise unknown_setting(f"{path}{key}", [f"{path}{name}" for name in hints])
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_names(hints[key], value, f"{path}{key}.")


def _check_lists(config: Config) -> None:
    """Raises an error if a list has the wrong length or order, or repeated entries."""
    for path, items in (
        ("encryption.steps", config.encryption.steps),
        ("finetuning.targets", config.finetuning.targets),
    ):
        if len(set(items)) < len(items):
            raise UserError(
                f"{path}: expected different entries, but {list(items)} has an entry twice"
            )
    if len(config.data.background) not in (1, 3):
        raise UserError(
            "data.background: expected one number (grey) or three numbers (red, green and blue)"
        )
    if config.data.pixel_range and (
        len(config.data.pixel_range) != 2 or not _rises(*config.data.pixel_range)
    ):
        raise UserError("data.pixel_range: expected two finite numbers, the smaller one first")
    if config.model.image_size is not None and len(config.model.image_size) not in (1, 2):
        raise UserError("model.image_size: expected one number, or two numbers (height and width)")
    if not config.finetuning.targets:
        raise UserError("finetuning.targets: expected at least one of q, k, v, proj, fc1, fc2")


def _rises(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high
