"""Reads the YAML of experiments, in files and on the command line.

The format is YAML 1.1 with plain values (numbers, texts, lists and mappings), but with stricter
rules than YAML has. A value is refused if a person could misread it, or if no experiment needs
such a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fl_vitlora.errors import MOST_SHOWN, UserError, shown

# Limits that no experiment reaches, and that every program can handle.
DEEPEST, MOST_VALUES = 20, 100_000
LONGEST_NUMBER = 63  # most bits of a whole number
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+$|[0-9_.]+:)")  # numbers to base 8 and base 60


class StrictLoader(yaml.SafeLoader):
    """Reads YAML with stricter rules than PyYAML's safe loader.

    A key that occurs twice in a mapping is refused; PyYAML would use its last value. Whole numbers
    of more than 63 bits are refused. Numbers that YAML understands differently from people are
    refused, too: YAML reads 1:30 as 90, and 010 as 8. If Python cannot build a value, such as the
    date 2024-99-99, the error is reported as an error in the YAML. Every error names the line and
    the column.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Builds the value of a YAML node of any type."""
        try:
            value = super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            told = f"{shown(node.value)} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from None
        if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
            told = f"expected a whole number of at most {LONGEST_NUMBER} bits"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        if isinstance(value, int | float) and OTHER_BASE.match(node.value):
            told = f"{shown(node.value)} means {value} in YAML; write {value}, or a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds the mapping of a YAML node.

        A key that comes from a merge (``<<``) may be given again.
        """
        keys = (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        own = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in own if own.count(key) > 1}, key=str)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} occurs twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def read_yaml(name: str, flag: str = "--config") -> dict[str, Any]:
    """Reads the YAML file that a flag names.

    Args:
        name: The path of the file.
        flag: The flag that names the file, for error messages.

    Returns:
        A dictionary: nested plain values, that is numbers, texts, lists and mappings.

    Raises:
        UserError: When the file does not exist, is not valid YAML, or does not contain a mapping.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib raises if no home is known
    try:
        if not path.is_file():
            raise UserError(f"{flag} {name}: {_why_no_file(path)}")
        tree = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {name} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {name}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(
            f"{flag} {name}: expected settings and values (a YAML mapping), got {shown(tree)}"
        )
    return tree or {}


def _why_no_file(path: Path) -> str:
    """Returns a text that says why a path is not a file, and which YAML files are near it."""
    if path.exists():
        return f"expected a file, got a {'folder' if path.is_dir() else 'device'}"
    near = sorted(map(str, path.parent.glob("*.yaml")))[:MOST_SHOWN]
    return f"no such file ({', '.join(near) or 'no YAML file there'})"


def _parse(text: str) -> Any:
    """Reads YAML, and checks that it is not too long and not nested too deeply.

    Raises:
        yaml.YAMLError: When the text is not valid YAML, has too many values, or is nested too
            deeply.
    """
    try:
        values = yaml.load(text, StrictLoader)
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels") from None
    _check_extent(values)
    return values


def _check_extent(values: Any) -> None:
    """Raises an error if YAML has too many values or is nested too deeply.

    An alias counts like the whole value to which it refers.
    """
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
    """Reads one setting of the command line, ``a.b=c``, whose value c is written in YAML.

    Example:
        >>> parse_override("encryption.steps=[pixel_shuffling]")
        ('encryption.steps', ['pixel_shuffling'])
    """
    path, separator, value = text.partition("=")
    if not separator or not all(name.strip() for name in path.split(".")):
        raise UserError(f"--set {shown(text)}: expected PATH=VALUE, for example training.epochs=2")
    return path.strip(), parse_value(value, f"--set {shown(text)}")


def parse_value(text: str, where: str) -> Any:
    """Reads a value that is written in YAML.

    Args:
        text: The value, written in YAML.
        where: The flag with the value, for error messages.

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
    """Returns nested plain values as YAML that is easy to read."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
