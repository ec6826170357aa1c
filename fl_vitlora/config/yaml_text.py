"""YAML as experiments are written in it: files, and values on the command line.

It is YAML 1.1 of plain values, read more strictly than usual: what a reader would take for
something else than the author meant is refused, and so is what no experiment needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fl_vitlora.errors import MOST_SHOWN, UserError, shown

# More than any experiment says, less than a program chokes on.
DEEPEST, MOST_VALUES = 20, 100_000
LONGEST_NUMBER = 63  # bits
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+$|[0-9_.]+:)")  # octal, and base 60


class StrictLoader(yaml.SafeLoader):
    """Reads YAML, and tells the place of what a plain loader would let pass, or break at.

    A key that stands twice in a mapping is refused, instead of taking the last, and so are numbers
    of hundreds of digits, and those that are others in YAML than for people: 1:30, which is 90, and
    010, which is 8. What Python has against a value, as 2024-99-99, is a mistake of the YAML.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes the value of any node."""
        try:
            value = super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            told = f"{shown(node.value)} is no value of {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from None
        if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
            told = f"a whole number of more than {LONGEST_NUMBER} bits"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        if isinstance(value, int | float) and OTHER_BASE.match(node.value):
            told = f"{shown(node.value)} means {value} in YAML; write that, or a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Makes a mapping; ``<<`` may bring keys that are given again."""
        keys = (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        own = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in own if own.count(key) > 1}, key=str)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def read_yaml(name: str) -> dict[str, Any]:
    """Reads the file that `--config` names, as nested plain values.

    Raises:
        UserError: When there is none, or it holds no mapping.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - as a shell, where no home is known
    try:
        if not path.is_file():
            raise UserError(f"--config {name}: {_why_no_file(path)}")
        tree = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {name}: not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"--config {name}: expected a mapping at the top, got {shown(tree)}")
    return tree or {}


def _why_no_file(path: Path) -> str:
    """Returns why there is no file, and which YAML files are in the folder."""
    if path.exists():
        return f"expected a file, got a {'folder' if path.is_dir() else 'device or the like'}"
    near = sorted(map(str, path.parent.glob("*.yaml")))[:MOST_SHOWN]
    return f"no such file ({', '.join(near) or 'no YAML file there'})"


def _parse(text: str) -> Any:
    """Reads YAML that is no larger than an experiment may be.

    Raises:
        yaml.YAMLError: When it is none, or too large.
    """
    try:
        values = yaml.load(text, StrictLoader)
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels") from None
    _check_extent(values)
    return values


def _check_extent(values: Any) -> None:
    """Refuses values that are too many or too deeply nested, for example through aliases."""
    waiting, found = [(values, 0)], 0
    while waiting:
        (value, depth), found = waiting.pop(), found + 1
        if depth > DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
        if found > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if isinstance(parts, list | tuple | set):
            waiting.extend((part, depth + 1) for part in parts)


def parse_override(text: str) -> tuple[str, Any]:
    """Reads one ``a.b=c`` of the command line; c is YAML.

    Example:
        >>> parse_override("encryption.steps=[pixel_shuffling]")
        ('encryption.steps', ['pixel_shuffling'])
    """
    path, separator, value = text.partition("=")
    if not separator or not all(name.strip() for name in path.split(".")):
        raise UserError(f"--set {shown(text)}: expected PATH=VALUE, for example training.epochs=2")
    return path.strip(), parse_value(value, f"--set {shown(text)}")


def parse_value(text: str, where: str) -> Any:
    """Reads a value as YAML writes it; ``where`` it stands is told with a mistake.

    Example:
        >>> parse_value("[[], EtC]", "--compare")
        [[], 'EtC']
    """
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or error
        raise UserError(f"{where}: {shown(text)} is not a YAML value ({why})") from None


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Writes nested plain values for people to read."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
