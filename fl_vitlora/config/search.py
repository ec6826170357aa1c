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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fl_vitlora.config import (
    Config,
    full_path,
    given_paths,
    resolve,
    setting,
    to_mapping,
    written,
)
from fl_vitlora.config.grid import Settings
from fl_vitlora.config.grid_words import MOST_RUNS
from fl_vitlora.config.search_dimensions import FORM, Choice, Range, read_dimensions
from fl_vitlora.config.settings import from_mapping
from fl_vitlora.errors import UserError, shown, unknown

SECTIONS = ("title", "search", "trials", "prune", "goal")  # keys that only a search has
GOALS = {"accuracy": "maximize", "loss": "minimize"}


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
            values: The values of the trial, by the name of the dimension: a number for a range, a
                label for a choice.

        Raises:
            UserError: If a value is not valid.
        """
        return dataclasses.replace(resolve(self.tree, self._settings(values)), out=None)

    def typed(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Returns the dotted paths of the settings that the user has set for a trial.

        Args:
            values: The values of the trial, by the name of the dimension: a number for a range, a
                label for a choice.
        """
        return given_paths(self.tree, self._settings(values))

    def _settings(self, values: Mapping[str, Any]) -> Settings:
        """Returns the settings of the command line and of a trial, by their dotted paths."""
        varied: dict[str, Any] = {}
        for name, value in values.items():
            dimension = self.dimensions[name]
            varied |= dimension.options[value] if isinstance(dimension, Choice) else {name: value}
        return {**self.given, **varied}

    @property
    def options(self) -> Iterator[tuple[str, str]]:
        """Yields the name of each choice with the label of each of its options."""
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Choice):
                yield from ((name, label) for label in dimension.options)

    @property
    def varied(self) -> list[str]:
        """Returns the dotted paths of all settings that vary."""
        found: dict[str, None] = {}
        for name, dimension in self.dimensions.items():
            options = dimension.options.values() if isinstance(dimension, Choice) else [{name: 0}]
            found |= dict.fromkeys(full_path(path) for option in options for path in option)
        return list(found)

    def corners(self) -> Iterator[Config]:
        """Yields an experiment for each end of each range, and for each option of each choice.

        In such an experiment, only one dimension is set.

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
        return {
            "title": self.title,
            "search": {name: _plain(each) for name, each in self.dimensions.items()},
            "trials": self.trials,
            "prune": dataclasses.asdict(self.pruning) if self.pruning else False,
            "goal": self.goal,
            **{key: value for key, value in self.stored({}).items() if key != "out"},
        }

    def stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the experiment of a trial as the nested plain values of a file.

        Args:
            values: The values of the trial, by the name of the dimension: a number for a range, a
                label for a choice.
        """
        config = self.experiment(values)
        if config.data.shards is None:
            return to_mapping(config)
        return written(config, self.typed(values))


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
        dimensions=dict(read_dimensions(tree["search"], given)),
        trials=_trials(tree.get("trials", 20)),
        pruning=_pruning(tree.get("prune", {})),
        goal=_goal(tree.get("goal", "accuracy")),
        out=shared.out,
        tree=experiment,
        given=given,
        shared=dataclasses.replace(shared, out=None),
    )
    list(plan.corners())  # raises an error if a value is not valid
    return plan


def _trials(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_RUNS:
        raise UserError(f"trials: expected a whole number in [1, {MOST_RUNS}], got {shown(value)}")
    return value


def _pruning(value: Any) -> Pruning | None:
    if value is False or value is None:
        return None
    return from_mapping(Pruning, {} if value is True else value, "prune")


def _goal(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"goal: expected one of {', '.join(GOALS)}, got {shown(value)}")
    if value not in GOALS:
        raise unknown("goal", value, GOALS)
    return str(value)


def _plain(dimension: Range | Choice) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {label: dict(option) for label, option in dimension.options.items()}
    ends = {"from": dimension.low, "to": dimension.high}
    return {**ends, "log": dimension.log, "step": dimension.step}
