"""Typed settings: builds dataclasses from nested plain values (lists, mappings, texts, numbers).

The metadata of every field has its explanation and its range, from which the text of
`--help-all` is made. One function, `from_mapping`, builds every dataclass from a mapping, and
compares the values with the annotations of the dataclass. An error names the path of the setting,
its value, the expected values and the most similar setting. The settings of an experiment
(`config`) and the parameters of a strategy are read in this way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, TypeVar

from fl_vitlora.config.units import Bytes, parse_bytes
from fl_vitlora.errors import UserError, shown, unknown

T = TypeVar("T")
SettingParser = Callable[[Any, str], Any]  # from a plain value and its path to the value

LONGEST_TEXT, LONGEST_NAME = 2000, 255  # most bytes of a text, and of a name in a path


def setting(
    default: Any, explanation: str, interval: str | None = None, read: SettingParser | None = None
) -> Any:
    """Returns a field of a dataclass with an explanation and a range.

    Args:
        default: The value of the field if none is given.
        explanation: Sentences for `--help-all` that say what the setting does.
        interval: The range of the field, such as "(0, 1]" for more than 0 and at most 1.
        read: A function that takes a plain value and the path of the setting, and returns the value
            of the field. A function `read` is needed only if the type of the field does not
            determine how to read the value.

    Returns:
        The field, for use in the body of a dataclass.
    """
    metadata = {"explanation": explanation, "interval": interval, "read": read}
    return field(default=default, metadata=metadata)


def explanations(kind: type[Any], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields the dotted path, the default and the explanation of every setting in a dataclass."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from explanations(hints[item.name], f"{path}{item.name}.")
        elif item.name == "options":
            yield f"{path}NAME", "", item.metadata["explanation"]
        elif item.name == "parameters":
            yield f"{path}parameters.NAME", "", item.metadata["explanation"]
        else:
            explanation = item.metadata["explanation"] + _choices_in_words(hints[item.name])
            yield f"{path}{item.name}", item.default, explanation


def _choices_in_words(hint: Any) -> str:
    """Returns a sentence with the choices of a setting, or an empty text if there are none."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    return f" Choices: {', '.join(choices)}." if choices else ""


def type_of(kind: type[Any], dotted: str) -> Any:
    """Returns the annotation of a setting; None if the dataclass does not name the setting.

    Args:
        kind: The dataclass with all settings.
        dotted: The dotted path of the setting.
    """
    for name in dotted.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            return None
        kind = hints[name]
    return kind


def from_mapping(kind: type[T], tree: Any, path: str = "") -> T:
    """Builds a dataclass from nested plain values.

    Args:
        kind: The dataclass to build.
        tree: A mapping from the names of fields to their values.
        path: The dotted path of the whole dataclass, for error messages.

    Returns:
        An instance of ``kind``.

    Raises:
        UserError: When a name is unknown, a value is missing, or a value does not fit the
            annotation of its field.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{path or 'the configuration'}: expected a mapping, got {shown(tree)}")
    hints = _hints_of(typing.cast(Any, kind))
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise unknown("setting", dotted, (f"{path}.{n}" if path else n for n in fields))
        values[key] = _fit(fields[key], hints[key], value, dotted)
    for name in (name for name, item in fields.items() if _is_needed(item) and name not in values):
        dotted = f"{path}.{name}" if path else name
        raise UserError(f"{dotted} needs a value: --set {dotted}=VALUE")
    return kind(**values)


@functools.lru_cache(maxsize=256)
def _hints_of(kind: type) -> Mapping[str, Any]:
    """Returns the annotations of a dataclass by field; Python evaluates their texts, which is slow.

    Raises:
        NameError: If an annotation has an unknown name.
    """
    return typing.get_type_hints(kind)


def check_defaults(kind: type[Any], path: str) -> None:
    """Checks that the defaults of a dataclass fit the types and ranges of its fields.

    Args:
        kind: The dataclass to check.
        path: The dotted path of the whole dataclass, for error messages.

    Raises:
        UserError: When a type is unknown, a range is not valid, or a default does not fit the type
            or range of its field.
    """
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError) as error:
        raise UserError(
            f"{path}: the class {kind.__name__} uses an unknown type: {error}"
        ) from None
    for item in dataclasses.fields(kind):
        dotted, interval = f"{path}.{item.name}", item.metadata.get("interval")
        if interval is not None:
            _read_interval(interval, dotted)
        if item.default is dataclasses.MISSING:
            continue
        try:
            _fit(item, hints[item.name], item.default, dotted)
        except UserError as error:
            raise UserError(
                f"the default of a field does not fit its type or range: {error}"
            ) from None


def _fit(item: dataclasses.Field[Any], hint: Any, value: Any, path: str) -> Any:
    """Reads the value of a field; raises an error if the value is outside the field's range."""
    read = item.metadata.get("read")
    fitting = convert(hint, value, path) if read is None else read(value, path)
    _check_interval(fitting, item.metadata.get("interval"), path)
    return fitting


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return item.init and item.default is missing and item.default_factory is missing


def convert(hint: Any, value: Any, path: str) -> Any:
    """Converts a plain value to the type that an annotation names.

    The annotation is a type, ``X | None``, a ``Literal``, a tuple, or a dataclass.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type[Any], hint), value, path)
    if origin in (types.UnionType, typing.Union):  # `NewType | None` has this origin
        return None if value is None else convert(arguments[0], value, path)
    if origin is tuple:
        single = arguments[0] is int and type(value) is int
        items = [value] if single else to_list(value, path)
        return tuple(convert(arguments[0], item, path) for item in items)
    if origin is Callable and not callable(value):
        raise UserError(
            f"{path}: expected a function, got {shown(value)}; only Python code can set this value"
        )
    if origin is Literal and value not in arguments:
        raise unknown(path, value, map(str, arguments))
    if hint in _READ:
        return _READ[hint](value, path)
    if hint in _NAMES and type(value) is not hint:
        raise UserError(f"{path}: expected {_NAMES[hint]}, got {shown(value)}")
    return value


_NAMES = {int: "a whole number", bool: "true or false"}


def to_list(value: Any, path: str) -> Sequence[Any]:
    """Reads the value of a setting that is a list.

    The text "a,b" means a list of two entries, and None an empty list.

    Raises:
        UserError: When the value is not a list.
    """
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    if value is not None and not isinstance(value, list | tuple):
        raise UserError(f"{path}: expected a list, got {shown(value)}")
    return value or []


def _to_float(value: Any, path: str) -> float:
    """Reads a number, also from a text, because YAML reads 1e-3 as a text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if math.isnan(number) or isinstance(value, bool):
        raise UserError(f"{path}: expected a number, got {shown(value)}")
    return number


def _to_text(value: Any, path: str) -> str:
    """Reads a text that can be stored in a file and be the path of a file.

    Raises:
        UserError: When the text is empty or too long, or when it contains characters that cannot be
            stored.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: expected a text that is not empty, got {shown(value)}")
    encoded = value.encode(errors="replace")
    if "\0" in value or encoded.decode() != value:
        raise UserError(
            f"{path}: expected valid Unicode text without the character NUL, got {shown(value)}"
        )
    if len(encoded) > LONGEST_TEXT or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise UserError(
            f"{path}: expected at most {LONGEST_TEXT} bytes, and at most {LONGEST_NAME} bytes "
            f"between two slashes, got {shown(value)}"
        )
    return value


def read_path(text: str, path: str) -> str:
    """Reads the path of a file or folder, in which ``~`` means a home folder, as in a shell.

    Args:
        text: The path as the user wrote it.
        path: The dotted path of the setting, for error messages.

    Returns:
        The path with the home folder in place of ``~``.

    Raises:
        UserError: When a home folder is unknown, or when the path begins with a variable such as
            ``$HOME``. The program does not replace variables, so such a path would name a wrong
            folder.

    Example:
        >>> read_path("images/~old", "data.name")
        'images/~old'
    """
    if VARIABLE.match(text):
        raise UserError(
            f"{path}: {shown(text)} begins with a variable, and variables are not replaced here; "
            "write the full path, or ~ for your home folder"
        )
    if not text.startswith("~"):
        return text
    whole = str(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises if no home is known
    if whole.startswith("~"):
        raise UserError(
            f"{path}: the home folder in {shown(text)} is unknown; write the full path of the "
            "folder"
        )
    return whole


VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/|$)", re.ASCII)

_READ: Mapping[Any, SettingParser] = {
    Bytes: parse_bytes,
    float: _to_float,
    str: _to_text,
}


def _check_interval(value: Any, interval: str | None, path: str) -> None:
    """Raises an error if a number is not in its range; "(0, 1]" excludes 0 and includes 1."""
    if isinstance(value, tuple):
        for item in value:
            _check_interval(item, interval, path)
        return
    if interval is None or value is None:
        return
    low, high = _read_interval(interval, path)
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise UserError(f"{path}: expected a number in the range {interval}, got {value}")


def _read_interval(interval: str, path: str) -> tuple[float, float]:
    """Returns the two bounds of a range.

    Raises:
        UserError: When the text is not a range.
    """
    try:
        low, high = (float(bound) for bound in interval[1:-1].split(","))
    except (TypeError, ValueError, AttributeError):
        low = high = float("nan")
    if not (low <= high and interval[0] in "[(" and interval[-1] in ")]"):
        raise UserError(
            f'{path}: expected a range such as "(0, 1]" or "[0, inf)", got {interval!r}'
        )
    return low, high
