"""The experiments of a comparison: axes, and one cell for each combination of their labels.

An axis is a setting, or a group of settings, that a comparison varies. On each axis there are
several choices. Each choice has a label and gives values to one or more settings. A cell is one
experiment of the comparison: it takes one choice from every axis. In YAML an axis has one of three
forms:

    finetuning.method: [head, lora]                     # values of a setting, also used as labels
    encryption.steps: {plain: [], all: ViT-blockwise}   # values of a setting, each with its label
    where:                                              # any name: settings under each label
      centralised: {clients: 1, data.partition: iid}
      federated: {clients: 20}

On the command line an axis `finetuning.method` with the values `head` and `lora` is written ``head
lora`` or ``finetuning.method=head,lora``. A mapping of axes describes a product, which has a cell
for each combination of the labels. A list of such mappings describes the union of the products.
This module does not read or write files.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_vitlora.config import (
    Config,
    flat,
    full_path,
    given_paths,
    paths,
    resolve,
    to_mapping,
    unknown_setting,
    written,
)
from fl_vitlora.config.grid_labels import Labels, axes_of, label_of, name_of
from fl_vitlora.config.grid_words import METHOD, MOST_RUNS, read_seeds
from fl_vitlora.errors import UserError, shown, unknown

Settings = Mapping[str, Any]  # values by dotted path

SECTIONS = ("title", "compare", "baseline", "seeds")  # keys that only a grid has
NO_AXIS = {"seed": "give several seeds with --seeds", "out": "every run gets its own folder"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting, or a group of settings, that a comparison varies.

    Attributes:
        name: The dotted path of a setting, or any other name.
        choices: A mapping from the label of each choice to the settings that it gives.
    """

    name: str
    choices: Mapping[str, Settings]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment of a comparison (a grid), which is run once with every seed.

    Attributes:
        labels: The label of this cell on each axis.
        config: The experiment of this cell.
        typed: The dotted paths of the settings that the user has set for this cell.
    """

    labels: Labels
    config: Config
    typed: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def name(self) -> str:
        """Returns the labels of this cell, joined by commas."""
        return name_of(self.labels)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A comparison of experiments, read from a file or from the command line.

    Attributes:
        title: The heading of the tables and plots of the comparison.
        products: The products of axes, each a list of axes. Every combination of the labels of a
            product is a cell.
        baseline: Labels with which the other labels of their axes are compared. The baseline of an
            axis without an entry is the first label of the axis.
        seeds: The seeds; every cell is run once with each seed.
        out: The folder of the comparison, or None if no folder was named.
        shared: The experiment to which the choices of a cell are applied.
        cells: All cells, in the order of their runs.
        typed: The dotted paths of the settings that the user has set for all cells.
    """

    title: str
    products: tuple[tuple[Axis, ...], ...]
    baseline: tuple[str, ...]
    seeds: tuple[int, ...]
    out: str | None
    shared: Config
    cells: tuple[Cell, ...]
    typed: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def runs(self) -> list[tuple[Cell, Config]]:
        """Returns all runs as pairs of a cell and its experiment, one pair for each seed."""
        return [
            (cell, dataclasses.replace(cell.config, seed=seed))
            for cell in self.cells
            for seed in self.seeds
        ]

    @property
    def baselines(self) -> dict[str, str]:
        """Returns a dictionary: the label of each axis with which its other labels are compared."""
        labels = axes_of(cell.labels for cell in self.cells)
        return {
            axis: next((label for label in self.baseline if label in names), names[0])
            for axis, names in labels.items()
        }


def is_grid(tree: Settings) -> bool:
    """Returns True if the settings describe a comparison (a grid), and not a single experiment.

    Example:
        >>> is_grid({"clients": 3, "seeds": [0, 1]}), is_grid({"clients": 3})
        (True, False)
    """
    return not {"compare", "seeds"}.isdisjoint(tree)


def read_grid(tree: Settings, given: Settings) -> Grid:
    """Reads a comparison and checks the experiment of every cell.

    Args:
        tree: The content of a YAML file: the settings of an experiment, and the keys `title`,
            `compare`, `baseline` and `seeds`.
        given: The settings of the command line, by dotted path.

    Returns:
        The comparison with the checked experiments of all its cells.

    Raises:
        UserError: If an axis, a setting or a value is not valid.

    Example:
        >>> grid = read_grid({"compare": {"finetuning.method": ["head", "lora"]}}, {"clients": 3})
        >>> [(cell.name, cell.config.clients) for cell in grid.cells]
        [('head', 3), ('lora', 3)]
    """
    if "seeds" in tree and "seed" in given:
        raise UserError(
            "both seed and seeds are given, in the file or by a flag; give only one of them"
        )
    experiment = {key: value for key, value in tree.items() if key not in SECTIONS}
    shared = resolve(experiment, given)
    seeds = _read_seeds(tree.get("seeds", [shared.seed]))
    sections = _listed(tree.get("compare") or {})
    products = tuple(tuple(_read_axes(section, given)) for section in sections)
    _check_number(products, seeds)

    def vary(labels: Labels, settings: Settings) -> Cell:
        own = {**given, **settings}
        config = dataclasses.replace(resolve(experiment, own), out=None, seed=seeds[0])
        typed = given_paths(experiment, own) | ({"seed"} if "seeds" in tree else frozenset())
        return Cell(labels=labels, config=config, typed=typed)

    common = vary({}, {})
    grid = Grid(
        title=str(tree.get("title") or ""),
        products=products,
        baseline=tuple(map(label_of, _listed(tree.get("baseline") or []))),
        seeds=seeds,
        out=shared.out,
        shared=common.config,
        cells=tuple(vary(labels, settings) for labels, settings in _union(products)),
        typed=common.typed,
    )
    _check_baseline(grid)
    return grid


def to_tree(grid: Grid) -> dict[str, Any]:
    """Returns nested plain values from which `read_grid` makes an equal grid."""
    shared, seeds = to_mapping(grid.shared), {"seeds": list(grid.seeds)}
    if any(cell.config.data.shards is not None for cell in grid.cells):
        shared = written(grid.shared, grid.typed)
        seeds = seeds if "seed" in grid.typed else {}
    return {
        "title": grid.title,
        "compare": [{axis.name: _choices(axis) for axis in product} for product in grid.products],
        "baseline": list(grid.baseline),
        **seeds,
        **{key: value for key, value in shared.items() if key not in NO_AXIS},
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_seeds(seeds: Any) -> tuple[int, ...]:
    """Reads the seeds: whole numbers without repetition."""
    if isinstance(seeds, str):
        seeds = read_seeds([seeds])
    if not isinstance(seeds, list) or not seeds:
        raise UserError(
            f"seeds: expected a list such as [0, 1, 2] or a range such as 0-4, got {shown(seeds)}"
        )
    read = tuple(resolve({}, {"seed": seed}).seed for seed in seeds)
    if len(set(read)) < len(read):
        raise UserError(f"seeds: expected different seeds, but {shown(seeds)} has a seed twice")
    return read


def _read_axes(section: Any, given: Settings) -> Iterator[Axis]:
    """Reads axes whose labels are all combined with each other (a product).

    A setting must not be in two axes, or in both an axis and a flag.
    """
    if not isinstance(section, Mapping):
        raise UserError(
            f"compare: expected axes such as {{{METHOD}: [head, lora]}}, got {shown(section)}"
        )
    owners: dict[str, str] = dict.fromkeys(map(full_path, given), "a flag")
    for name, values in section.items():
        axis = read_axis(str(name), values)
        paths = dict.fromkeys(path for settings in axis.choices.values() for path in settings)
        for path in paths:
            if full_path(path) in owners:
                raise UserError(
                    f"{path} is set twice, by {owners[full_path(path)]} and by axis {name}; set it "
                    "only once"
                )
        owners |= {full_path(path): f"axis {name}" for path in paths}
        yield axis


def read_axis(name: str, values: Any, section: str = "compare") -> Axis:
    """Reads an axis in one of the three forms of the module docstring.

    Args:
        name: The name of the axis.
        values: The content of the axis in YAML.
        section: The key of the file that has the axis, for error messages.

    Raises:
        UserError: If a setting is unknown, or a value occurs twice.
    """
    choices = values if isinstance(values, Mapping) else _label(name, values, section)
    if not choices:
        raise UserError(f"{section}: axis {name} has no values; expected at least one")
    labelled = {label_of(label): choice for label, choice in choices.items()}
    if not all(isinstance(choice, Mapping) for choice in labelled.values()):
        if not _is_setting(name):
            raise unknown_setting(name)
        labelled = {label: {name: value} for label, value in labelled.items()}
    labelled = {label: flat(choice) for label, choice in labelled.items()}
    for path in itertools.chain.from_iterable(labelled.values()):
        if not isinstance(path, str):
            raise unknown_setting(path)
        if path in NO_AXIS:
            raise UserError(f"{section}: an axis cannot vary {path}; {NO_AXIS[path]}")
    return Axis(name=name, choices=labelled)


def _label(name: str, values: Any, section: str) -> dict[str, Any]:
    """Returns a dictionary of choices for a list of values; a label is a value as text."""
    values = _listed(values)
    labelled = {label_of(value): value for value in values}
    if len(labelled) < len(values):
        raise UserError(
            f"{section}: expected different values of {name}, but {shown(values)} has a value twice"
        )
    return labelled


def _is_setting(name: str) -> bool:
    """Returns True if a name is a setting, a parameter of a strategy, or a group of settings."""
    return name.startswith("strategy.") or full_path(name) in paths()


def _choices(axis: Axis) -> dict[str, Any]:
    """Returns the choices of an axis in the form that `read_axis` reads."""
    if any(list(settings) != [axis.name] for settings in axis.choices.values()):
        return {label: dict(settings) for label, settings in axis.choices.items()}
    return {label: settings[axis.name] for label, settings in axis.choices.items()}


def _union(products: Sequence[Sequence[Axis]]) -> Iterator[tuple[Labels, Settings]]:
    """Yields the labels and settings of each cell once, even if two products have the same cell."""
    seen: dict[tuple[tuple[str, str], ...], Settings] = {}
    for axes in products:
        for picks in itertools.product(*(axis.choices.items() for axis in axes)):
            labels = {axis.name: label for axis, (label, _) in zip(axes, picks, strict=True)}
            settings = {path: value for _, choice in picks for path, value in choice.items()}
            key = tuple(sorted(labels.items()))
            if seen.setdefault(key, settings) != settings:
                raise UserError(
                    "compare: two combinations with different settings have the same name "
                    f"{name_of(labels)!r}; change a label"
                )
            if seen[key] is settings:
                yield labels, settings


def _check_number(products: Sequence[Sequence[Axis]], seeds: Sequence[int]) -> None:
    """Raises an error if there are more than `MOST_RUNS` runs.

    The check does not build the experiments of the cells.
    """
    cells = sum(math.prod(len(axis.choices) for axis in axes) for axes in products)
    if cells * len(seeds) > MOST_RUNS:
        raise UserError(
            f"compare: too many runs, {cells} combinations with {len(seeds)} seeds each; expected "
            f"at most {MOST_RUNS} runs in all"
        )


def _check_baseline(grid: Grid) -> None:
    labels = axes_of(cell.labels for cell in grid.cells)
    known = [label for names in labels.values() for label in names]
    for label in grid.baseline:
        if label not in known:
            raise unknown("baseline", label, known)
