"""The space of a search: which settings vary, in which ranges, and what is held fixed.

In YAML a search is an experiment with the key `search`, in which every dimension has one of these
forms:

    search:
      training.learning_rate: {from: 1.0e-4, to: 1.0e-2, log: true}   # a range of a number
      training.epochs: {from: 1, to: 4}              # whole numbers, if the setting is one
      training.batch_size: [8, 16, 32]               # a choice of values
      where:                                         # any name: a choice of several settings
        centralised: {clients: 1}
        federated: {clients: 20}
    trials: 30                     # how many combinations are tried
    prune: {after_trials: 5, after_rounds: 2}        # or false; when a bad trial may end early
    goal: accuracy                 # or loss, both on the validation images

This module does not read or write files.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fl_vitlora.config import (
    Config,
    full_path,
    given_paths,
    paths,
    resolve,
    setting,
    to_mapping,
    unknown_setting,
    written,
)
from fl_vitlora.config.grid import Settings, read_axis
from fl_vitlora.config.grid_words import MOST_RUNS
from fl_vitlora.config.settings import convert, from_mapping, type_of
from fl_vitlora.errors import UserError, shown, unknown

SECTIONS = ("title", "search", "trials", "prune", "goal")  # keys that only a search has
GOALS = {"accuracy": "maximize", "loss": "minimize"}
FORM = "{from: LOW, to: HIGH, log: true}"
PARTS = ("from", "to", "log", "step")
FREE = ("strategy.", "finetuning.parameters.")  # settings whose types code elsewhere defines
IMAGES = "the trials would be measured on different images, and could not be compared"
HELD: Mapping[str, str] = {
    "seed": "a search over seeds chooses luck",
    "out": "every trial gets its own folder",
    **dict.fromkeys(
        (
            *("data.name", "data.config", "data.revision", "data.shards", "data.limit"),
            *("data.layout", "data.image_column", "data.label_column"),
            *("data.train_split", "data.test_split", "data.test_fraction"),
            *("data.validation_split", "data.validation_fraction"),
        ),
        IMAGES,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of a number.

    Attributes:
        low: The smallest value.
        high: The largest value.
        log: True if the logarithm of the value is spread evenly.
        step: The distance between two values; None if every number in the range is possible.
        whole: True if only whole numbers are possible.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of settings.

    Attributes:
        options: The settings of each option, by the label of the option.
    """

    options: Mapping[str, Settings]


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """When a trial that is worse than the median of the earlier trials may end early."""

    after_trials: int = setting(
        5, "The number of complete trials before which no trial ends early.", "[1, inf)"
    )
    after_rounds: int = setting(2, "The number of rounds that every trial takes.", "[1, inf)")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search, read from a file.

    Attributes:
        title: The heading of the table of trials.
        dimensions: The range or the choice of each dimension, by its name.
        trials: The number of trials.
        pruning: When trials may end early; None if they may not.
        goal: The measure on the validation images, "accuracy" or "loss".
        out: The folder of the search; None if no folder was named.
        tree: The settings of the file, without those that vary.
        given: The settings of the command line, by dotted path.
        shared: The experiment of the file, before any setting is varied.
    """

    title: str
    dimensions: Mapping[str, Range | Choice]
    trials: int
    pruning: Pruning | None
    goal: str
    out: str | None
    tree: Settings
    given: Settings
    shared: Config

    def experiment(self, values: Mapping[str, Any]) -> Config:
        """Returns the experiment of a trial.

        Args:
            values: The number of each range, and the label of each choice, by the dimension.

        Raises:
            UserError: If a value is not valid.
        """
        return dataclasses.replace(resolve(self.tree, self._settings(values)), out=None)

    def typed(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Returns the dotted paths of the settings that the user has set for a trial.

        Args:
            values: The number of each range, and the label of each choice, by the dimension.
        """
        return given_paths(self.tree, self._settings(values))

    def _settings(self, values: Mapping[str, Any]) -> Settings:
        """Returns the settings of the command line and of a trial, by their dotted paths."""
        varied: dict[str, Any] = {}
        for name, value in values.items():
            dimension = self.dimensions[name]
            varied |= dimension.options[value] if isinstance(dimension, Choice) else {name: value}
        return {**self.given, **varied}

    def corners(self) -> Iterator[Config]:
        """Yields experiments in which one dimension has an end of its range, or an option.

        Raises:
            UserError: If such a value is not valid.
        """
        for name, dimension in self.dimensions.items():
            ends: Iterable[Any] = (
                dimension.options
                if isinstance(dimension, Choice)
                else (dimension.low, dimension.high)
            )
            for value in ends:
                yield self.experiment({name: value})

    def to_tree(self) -> dict[str, Any]:
        """Returns nested plain values from which `read_search` makes an equal search."""
        shared = to_mapping(self.shared)
        if self.shared.data.shards is not None:
            shared = written(self.shared, self.typed({}))
        return {
            "title": self.title,
            "search": {name: _plain(each) for name, each in self.dimensions.items()},
            "trials": self.trials,
            "prune": dataclasses.asdict(self.pruning) if self.pruning else False,
            "goal": self.goal,
            **{key: value for key, value in shared.items() if key != "out"},
        }


def is_search(tree: Settings) -> bool:
    """Returns True if the content of a file describes a search."""
    return "search" in tree


def read_search(tree: Settings, given: Settings) -> Search:
    """Reads a search, and checks the ends of every range and every option of a choice.

    Args:
        tree: The content of a YAML file.
        given: The settings of the command line, by dotted path.

    Raises:
        UserError: If a dimension, a setting or a value is not valid.

    Example:
        >>> tree = {"search": {"clients": {"from": 2, "to": 4}, "training.batch_size": [8, 16]}}
        >>> found = read_search(tree, {"rounds": 1})
        >>> found.experiment({"clients": 3, "training.batch_size": "16"}).training.batch_size
        16
    """
    if not isinstance(tree.get("search"), Mapping) or not tree["search"]:
        raise UserError(
            "search: expected the settings that vary, such as {training.learning_rate: "
            f"{FORM}}}, got {shown(tree.get('search'))}"
        )
    if strange := {"compare", "seeds"} & tree.keys():
        raise UserError(f"{min(strange)}: a search has no such key; a comparison has it")
    experiment = {key: value for key, value in tree.items() if key not in SECTIONS}
    shared = resolve(experiment, given)
    plan = Search(
        title=str(tree.get("title") or ""),
        dimensions=dict(_dimensions(tree["search"], given)),
        trials=_trials(tree.get("trials", 20)),
        pruning=_pruning(tree.get("prune", {})),
        goal=_goal(tree.get("goal", "accuracy")),
        out=shared.out,
        tree=experiment,
        given=given,
        shared=dataclasses.replace(shared, out=None),
    )
    list(plan.corners())  # an error if a value is not valid
    return plan


def _dimensions(section: Settings, given: Settings) -> Iterator[tuple[str, Range | Choice]]:
    """Yields the name and the values of each dimension; no setting is varied twice."""
    owners: dict[str, str] = dict.fromkeys(map(full_path, given), "a flag")
    for key, values in section.items():
        name = str(key)
        _check_free(full_path(name))
        is_range = isinstance(values, Mapping) and bool({"from", "to"} & values.keys())
        dimension = _range(name, values) if is_range else _choice(name, values)
        varied = [name]
        if isinstance(dimension, Choice):
            varied = [path for option in dimension.options.values() for path in option]
        for path in dict.fromkeys(map(full_path, varied)):
            _check_free(path)
            if path in owners:
                raise UserError(
                    f"search: {path} is set twice, by {owners[path]} and by {name}; set it only "
                    "once"
                )
            owners[path] = name
        yield name, dimension


def _check_free(path: str) -> None:
    """Raises an error if a setting must be the same in all trials."""
    if path in HELD:
        raise UserError(f"search: {path} cannot vary: {HELD[path]}")


def _choice(name: str, values: Any) -> Choice:
    """Reads a choice in one of the forms of an axis of a comparison."""
    options = read_axis(name, values, "search").choices
    if len(options) < 2:
        raise UserError(f"search: {name} has one value; expected at least two, or no dimension")
    return Choice(options=options)


def _range(name: str, values: Mapping[str, Any]) -> Range:
    """Reads the range of a number.

    Raises:
        UserError: If the setting is not a number, or the range is not valid.
    """
    where, path = f"search: {name}", full_path(name)
    if path not in paths() and not path.startswith(FREE):
        raise unknown_setting(name)
    for key in values:
        if key not in PARTS:
            raise unknown(f"{where}:", key, PARTS)
    if not {"from", "to"} <= values.keys():
        raise UserError(
            f"{where}: expected both ends of a range, {FORM}, got {shown(dict(values))}"
        )
    whole = _is_whole(path, values)
    kind = int if whole else float
    low, high = (convert(kind, values[end], f"{where}.{end}") for end in ("from", "to"))
    log = convert(bool, values.get("log", False), f"{where}.log")
    step = values.get("step")
    step = None if step is None else convert(kind, step, f"{where}.step")
    if not low < high or (log and low <= 0):
        above = " above 0" if log else ""
        raise UserError(
            f"{where}: expected two numbers{above}, the smaller one first, got {low}, {high}"
        )
    if step is not None and (log or not 0 < step <= high - low):
        raise UserError(
            f"{where}.step: expected a number above 0 and at most to - from, without log"
        )
    return Range(low=low, high=high, log=log, step=step, whole=whole)


def _is_whole(path: str, values: Mapping[str, Any]) -> bool:
    """Returns True if a setting takes whole numbers only.

    The parameters of strategies and methods are defined elsewhere, so that their values decide.

    Raises:
        UserError: If the setting is not a number.
    """
    hint = type_of(Config, path)
    if path.startswith(FREE):
        return all(type(values[end]) is int for end in ("from", "to"))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = typing.get_args(hint)[0]
    if hint not in (int, float):
        raise UserError(
            f"search: {path} is not a number, so it has no range; expected a list of values"
        )
    return hint is int


def _trials(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_RUNS:
        raise UserError(f"trials: expected a whole number in [1, {MOST_RUNS}], got {shown(value)}")
    return value


def _pruning(value: Any) -> Pruning | None:
    if value is False or value is None:
        return None
    return from_mapping(Pruning, {} if value is True else value, "prune")


def _goal(value: Any) -> str:
    if value not in GOALS:
        raise unknown("goal", value, GOALS)
    return str(value)


def _plain(dimension: Range | Choice) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {label: dict(option) for label, option in dimension.options.items()}
    ends = {"from": dimension.low, "to": dimension.high}
    return {**ends, "log": dimension.log, "step": dimension.step}
