"""Which experiments a comparison consists of: axes, their product, and the labels of its cells.

An axis gives labels to choices, and every choice is a few settings. In YAML it is one of

    finetuning.method: [head, lora]                     # values of a setting; they are the labels
    encryption.steps: {plain: [], all: ViT-blockwise}   # values of a setting, each with its label
    where:                                              # any name: settings under each label
      centralised: {clients: 1, data.partition: iid}
      federated: {clients: 20}

and on the command line ``head lora`` or ``finetuning.method=head,lora``. A mapping of axes is their
product; a list of such mappings is the union of their products. Nothing here touches a file.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fl_vitlora.config import (
    SCHEMES,
    Config,
    full_path,
    paths,
    resolve,
    to_mapping,
    unknown_setting,
)
from fl_vitlora.config.method_names import PARTS, USUAL, is_sum
from fl_vitlora.config.yaml_text import parse_value
from fl_vitlora.errors import UserError, shown, unknown

Settings = Mapping[str, Any]  # values by dotted path
Labels = Mapping[str, str]  # the label that a cell has on each axis

SECTIONS = ("title", "compare", "baseline", "seeds")  # what a grid's file adds to an experiment's
METHOD = "finetuning.method"
NO_AXIS = {"seed": "give several with --seeds", "out": "every run gets a folder of its own"}
LONGEST_NAME = 100
MOST_RUNS = 10_000
SEED_RANGE = re.compile(r"(\d{1,18})\s*(?:-|\.\.+|–|:)\s*(\d{1,18})", re.ASCII)
CALL = re.compile(r"[^,\[\]{}'\"]*\([^()'\"]*,[^()'\"]*\)[^,\[\]{}'\"]*")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is varied.

    Attributes:
        name: A setting's dotted path, or any other name.
        choices: What each label stands for.
    """

    name: str
    choices: Mapping[str, Settings]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment of a grid, to be run with every seed.

    Attributes:
        labels: Where it stands.
        config: What it is.
    """

    labels: Labels
    config: Config

    @property
    def name(self) -> str:
        """Joins its labels."""
        return name_of(self.labels)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A comparison as it was asked for.

    Attributes:
        title: Heads its tables and pictures.
        products: Axes; a cell for every combination in each.
        baseline: Labels that others are compared with; else the first of an axis.
        seeds: Every cell is run with each.
        out: Its folder, if it was named.
        shared: The experiment that the cells vary.
        cells: All of them, in order.
    """

    title: str
    products: tuple[tuple[Axis, ...], ...]
    baseline: tuple[str, ...]
    seeds: tuple[int, ...]
    out: str | None
    shared: Config
    cells: tuple[Cell, ...]

    @property
    def runs(self) -> list[tuple[Cell, Config]]:
        """Lists all runs: each cell with the experiment of each seed."""
        return [
            (cell, dataclasses.replace(cell.config, seed=seed))
            for cell in self.cells
            for seed in self.seeds
        ]

    @property
    def baselines(self) -> dict[str, str]:
        """Tells the label on each axis that the others are compared with."""
        labels = axes_of(cell.labels for cell in self.cells)
        return {
            axis: next((label for label in self.baseline if label in names), names[0])
            for axis, names in labels.items()
        }


def is_grid(tree: Settings) -> bool:
    """Tells a grid's file from an experiment's.

    Example:
        >>> is_grid({"clients": 3, "seeds": [0, 1]}), is_grid({"clients": 3})
        (True, False)
    """
    return not {"compare", "seeds"}.isdisjoint(tree)


def read_words(
    words: Iterable[str], strategies: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """Reads the axes of a command line as a YAML file would give them.

    A bare word is a method, the name of a strategy, or a scheme of encryption.

    Args:
        words: As they were typed.
        strategies: Names of strategies, if they are known; ``package.module:Class`` is one in any
            case.

    Example:
        >>> read_words(["head", "lora", "encryption.steps=[],EtC"])
        {'finetuning.method': ['head', 'lora'], 'encryption.steps': [[], 'EtC']}
        >>> read_words(["fedavg", "fedprox"], ["fedavg", "fedprox"])
        {'strategy': ['fedavg', 'fedprox']}
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        path, equals, values = word.partition("=")
        where = f"--compare {shown(word)}"
        read = parse_value(f"[{_protect_commas(values if equals else word)}]", where)
        for value in read:
            name = path if equals else _axis_of_word(value, strategies)
            axes.setdefault(name, []).append(value)
        if not read:
            axes.setdefault(path if equals else METHOD, [])
    return axes


def _protect_commas(values: str) -> str:
    """Puts values such as ``int4(128,nearest)`` in quotes, whose commas divide no list."""
    return CALL.sub(lambda call: json.dumps(call[0]), values)


def _axis_of_word(value: Any, strategies: Sequence[str] | None) -> str:
    """Finds the axis of a bare word.

    Raises:
        UserError: When it is a value of another setting, or is misspelt.
    """
    methods, schemes = _choices_of(METHOD), list(SCHEMES)
    if value in methods or not isinstance(value, str) or is_sum(value):
        return METHOD
    if value in (strategies or ()) or ":" in value:
        return "strategy"
    if value in schemes:
        return "encryption.steps"
    for path in paths():
        if path != METHOD and value in _choices_of(path):
            raise UserError(
                f"--compare {value}: expected {METHOD}, a strategy or an axis; {value} is a value "
                f"of {path}: --compare {path}={value},..."
            )
    if strategies is None:
        return METHOD
    raise unknown(f"{METHOD} or strategy", value, [*methods, *schemes, *strategies])


def _choices_of(path: str) -> tuple[Any, ...]:
    """Lists the values of a setting that has only a few; of any other there are none."""
    if path == METHOD:
        return tuple(dict.fromkeys([*USUAL, *PARTS]))
    kind: Any = Config
    for name in path.split("."):
        kind = typing.get_type_hints(kind).get(name)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def read_seeds(words: Iterable[str]) -> list[Any]:
    """Reads seeds of a command line: numbers, lists and ranges.

    Raises:
        UserError: When a range runs backwards, or holds more seeds than anybody waits for.

    Example:
        >>> read_seeds(["0-2", "7"]), read_seeds(["0..1"]), read_seeds(["3,4"])
        ([0, 1, 2, 7], [0, 1], [3, 4])
    """
    parts = [part for word in words for part in word.split(",")]
    return [seed for part in parts for seed in _seeds_of(part.strip())]


def is_several(seed: str) -> bool:
    """Tells a range or a list of seeds from a single one.

    Example:
        >>> is_several("0-4"), is_several("0,1"), is_several("7")
        (True, True, False)
    """
    return SEED_RANGE.fullmatch(seed) is not None or "," in seed


def _seeds_of(text: str) -> list[Any]:
    match = SEED_RANGE.fullmatch(text)
    if match is None:
        return [parse_value(text, "--seeds")]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MOST_RUNS:
        raise UserError(
            f"seeds: {text} is no range of at most {MOST_RUNS} seeds; expected numbers such as "
            "0 1 2, or a range such as 0-4"
        )
    return list(range(first, last + 1))


def read_grid(tree: Settings, given: Settings) -> Grid:
    """Reads a comparison, and checks every cell's experiment.

    Args:
        tree: An experiment's settings as in its file, with the sections of a grid.
        given: Settings of the command line, by dotted path.

    Returns:
        The grid.

    Raises:
        UserError: When an axis, a setting or a value does not fit.

    Example:
        >>> grid = read_grid({"compare": {"finetuning.method": ["head", "lora"]}}, {"clients": 3})
        >>> [(cell.name, cell.config.clients) for cell in grid.cells]
        [('head', 3), ('lora', 3)]
    """
    if "seeds" in tree and "seed" in given:
        raise UserError("seed is given by a flag, and seeds too; take one")
    experiment = {key: value for key, value in tree.items() if key not in SECTIONS}
    shared = resolve(experiment, given)
    seeds = _read_seeds(tree.get("seeds", [shared.seed]))
    sections = _listed(tree.get("compare") or {})
    products = tuple(tuple(_read_axes(section, given)) for section in sections)
    _check_number(products, seeds)

    def vary(settings: Settings) -> Config:
        config = resolve(experiment, {**given, **settings})
        return dataclasses.replace(config, out=None, seed=seeds[0])

    grid = Grid(
        title=str(tree.get("title") or ""),
        products=products,
        baseline=tuple(map(label_of, _listed(tree.get("baseline") or []))),
        seeds=seeds,
        out=shared.out,
        shared=vary({}),
        cells=tuple(
            Cell(labels=labels, config=vary(settings)) for labels, settings in _union(products)
        ),
    )
    _check_baseline(grid)
    return grid


def to_tree(grid: Grid) -> dict[str, Any]:
    """Turns a grid into plain values that `read_grid` reads back equal."""
    shared = to_mapping(grid.shared)
    return {
        "title": grid.title,
        "compare": [{axis.name: _choices(axis) for axis in product} for product in grid.products],
        "baseline": list(grid.baseline),
        "seeds": list(grid.seeds),
        **{key: value for key, value in shared.items() if key not in NO_AXIS},
    }


def axes_of(cells: Iterable[Labels]) -> dict[str, list[str]]:
    """Gathers the labels of each axis, in order.

    Example:
        >>> axes_of([{"method": "head", "images": "plain"}, {"method": "lora"}])
        {'method': ['head', 'lora'], 'images': ['plain']}
    """
    axes: dict[str, list[str]] = {}
    for labels in cells:
        for axis, label in labels.items():
            names = axes.setdefault(axis, [])
            names.extend([label] if label not in names else [])
    return axes


def name_of(labels: Labels) -> str:
    """Names a cell by its labels; the only cell of a grid without axes has none.

    Example:
        >>> name_of({"finetuning.method": "lora", "encryption.steps": "plain"})
        'lora, plain'
    """
    return ", ".join(labels.values()) or "experiment"


def folder_name(labels: Labels, seed: int) -> str:
    """Names a run's folder, in characters that every file system takes.

    Example:
        >>> folder_name({"finetuning.method": "lora+patch_embed", "data": "a/b c"}, 3)
        'lora+patch_embed-a-b-c-seed3'
    """
    safe = re.sub(r"[^A-Za-z0-9_+.]+", "-", name_of(labels)).strip("-.")[:LONGEST_NAME]
    return f"{safe or 'cell'}-seed{seed}"


def label_of(value: Any) -> str:
    """Writes a value as its own label.

    Example:
        >>> [label_of(value) for value in (0.5, True, None, [], ["q", "v"])]
        ['0.5', 'true', 'none', 'none', 'q,v']
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == []:
        return "none"
    return ",".join(map(label_of, value)) if isinstance(value, list) else str(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_seeds(seeds: Any) -> tuple[int, ...]:
    """Reads whole numbers, each once."""
    if isinstance(seeds, str):
        seeds = read_seeds([seeds])
    if not isinstance(seeds, list) or not seeds:
        raise UserError(
            f"seeds: expected a list such as [0, 1, 2] or a range such as 0-4, got {shown(seeds)}"
        )
    read = tuple(resolve({}, {"seed": seed}).seed for seed in seeds)
    if len(set(read)) < len(read):
        raise UserError(f"seeds: one stands twice in {shown(seeds)}")
    return read


def _read_axes(section: Any, given: Settings) -> Iterator[Axis]:
    """Reads a product, whose axes must not touch each other's settings, nor those of a flag."""
    if not isinstance(section, Mapping):
        raise UserError(
            f"compare: expected axes such as {{{METHOD}: [head, lora]}}, got {shown(section)}"
        )
    owners: dict[str, str] = dict.fromkeys(map(full_path, given), "a flag")
    for name, values in section.items():
        axis = _read_axis(str(name), values)
        paths = dict.fromkeys(path for settings in axis.choices.values() for path in settings)
        for path in paths:
            if full_path(path) in owners:
                raise UserError(
                    f"{path} is given by {owners[full_path(path)]} and by axis {name} too"
                )
        owners |= {full_path(path): f"axis {name}" for path in paths}
        yield axis


def _read_axis(name: str, values: Any) -> Axis:
    """Reads an axis in any of its three forms."""
    choices = values if isinstance(values, Mapping) else _label(name, values)
    if not choices:
        raise UserError(f"compare: axis {name} has no values")
    labelled = {label_of(label): choice for label, choice in choices.items()}
    if not all(isinstance(choice, Mapping) for choice in labelled.values()):
        if not _is_setting(name):
            raise unknown_setting(name)
        labelled = {label: {name: value} for label, value in labelled.items()}
    for path in itertools.chain.from_iterable(labelled.values()):
        if not isinstance(path, str):
            raise unknown_setting(path)
        if path in NO_AXIS:
            raise UserError(f"compare: {path} cannot be varied by an axis; {NO_AXIS[path]}")
    return Axis(name=name, choices=labelled)


def _label(name: str, values: Any) -> dict[str, Any]:
    """Labels each value of a list by itself."""
    values = _listed(values)
    labelled = {label_of(value): value for value in values}
    if len(labelled) < len(values):
        raise UserError(f"compare: a value of {name} stands twice in {shown(values)}")
    return labelled


def _is_setting(name: str) -> bool:
    """Knows all settings, the parameters of strategies, and the short forms of groups."""
    return name.startswith("strategy.") or full_path(name) in paths()


def _choices(axis: Axis) -> dict[str, Any]:
    """Writes an axis as it is read."""
    if any(list(settings) != [axis.name] for settings in axis.choices.values()):
        return {label: dict(settings) for label, settings in axis.choices.items()}
    return {label: settings[axis.name] for label, settings in axis.choices.items()}


def _union(products: Sequence[Sequence[Axis]]) -> Iterator[tuple[Labels, Settings]]:
    """Yields labels and settings of all cells; one that stands in two products is the same."""
    seen: dict[tuple[tuple[str, str], ...], Settings] = {}
    for axes in products:
        for picks in itertools.product(*(axis.choices.items() for axis in axes)):
            labels = {axis.name: label for axis, (label, _) in zip(axes, picks, strict=True)}
            settings = {path: value for _, choice in picks for path, value in choice.items()}
            key = tuple(sorted(labels.items()))
            if seen.setdefault(key, settings) != settings:
                raise UserError(f"compare: two different cells are called {name_of(labels)!r}")
            if seen[key] is settings:
                yield labels, settings


def _check_number(products: Sequence[Sequence[Axis]], seeds: Sequence[int]) -> None:
    """Refuses more runs than anybody waits for, before they are listed."""
    cells = sum(math.prod(len(axis.choices) for axis in axes) for axes in products)
    if cells * len(seeds) > MOST_RUNS:
        raise UserError(
            f"compare: {cells} combinations with {len(seeds)} seeds each; take at most {MOST_RUNS} "
            "runs in all"
        )


def _check_baseline(grid: Grid) -> None:
    labels = axes_of(cell.labels for cell in grid.cells)
    known = [label for names in labels.values() for label in names]
    for label in grid.baseline:
        if label not in known:
            raise unknown("baseline", label, known)
