"""The dimensions of a search: ranges and choices, and the settings that must not vary.

All trials of a search must be measured on the same images. So the settings that decide which images
are measured are held fixed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fl_vitlora.config import Config, full_path, paths, unknown_setting
from fl_vitlora.config.grid import Settings, read_axis
from fl_vitlora.config.settings import convert, type_of
from fl_vitlora.errors import UserError, shown, unknown

FORM = "{from: LOW, to: HIGH, log: true}"
PARTS = ("from", "to", "log", "step")
FREE = ("strategy.", "finetuning.parameters.")  # settings whose types other code defines
IMAGES = "the trials would be measured on different images, and could not be compared"
HELD: Mapping[str, str] = {
    "seed": "a search over seeds chooses luck",
    "out": "every trial gets its own folder",
    **dict.fromkeys(
        (
            *("data.name", "data.digest", "data.config", "data.revision", "data.shards"),
            *("data.limit", "evaluation.images"),
            *("data.layout", "data.image_column", "data.label_column"),
            *("data.train_split", "data.test_split", "data.test_fraction"),
            *("data.validation_split", "data.validation_fraction"),
        ),
        IMAGES,
    ),
}
OF_CLIENTS = frozenset(  # settings that decide which images each client evaluates
    (
        *("clients", "data.partition", "data.alpha", "data.classes_per_client"),
        *("data.shards_per_client", "data.min_samples", "data.client_column", "data.feature_skew"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of a number.

    Attributes:
        low: The smallest value.
        high: The largest value.
        log: True if values are drawn on a logarithmic scale, instead of a linear scale.
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


def read_dimensions(section: Settings, given: Settings) -> Iterator[tuple[str, Range | Choice]]:
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
    if step is not None:
        _check_end(where, low, high, step)
    return Range(low=low, high=high, log=log, step=step, whole=whole)


def _check_end(where: str, low: float, high: float, step: float) -> None:
    """Checks that whole steps lead from one end of a range to the other.

    The numbers are compared as decimal numbers, so ten steps of 0.1 lead exactly from 0 to 1.

    Raises:
        UserError: If no number of whole steps leads to the upper end.
    """
    first, last, each = (Decimal(str(number)) for number in (low, high, step))
    steps, rest = divmod(last - first, each)
    if rest:
        below, above = (format((first + n * each).normalize(), "f") for n in (steps, steps + 1))
        raise UserError(
            f"{where}.to: expected an end that steps of {step} reach from {low}, got {high}; the "
            f"nearest ends are {below} and {above}"
        )


def _is_whole(path: str, values: Mapping[str, Any]) -> bool:
    """Returns True if a setting takes whole numbers only.

    The types of the parameters of strategies and methods are not known here. Such a parameter takes
    whole numbers only if both ends of the range are whole numbers.

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
