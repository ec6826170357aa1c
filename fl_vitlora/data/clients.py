"""Reads from a column of a table which client owns each image.

A client is, for example, a hospital, a writer or a sensor. The name of a client is a text, a whole
number, or true or false. Names are compared exactly as they are stored: "A" and "a " are two
clients, and the number 1 is not the text "1". All names in a column must have the same type, so
that no client has two names.

Letters in shapes: n images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fl_vitlora.data.classes import Part, name_some, printable
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.errors import UserError, shown, unknown

SETTING = "data.client_column"
_KINDS = {str: "a text", int: "a whole number", bool: "true or false"}


def name_of(value: Any, where: str) -> Name:
    """Checks the name of a client, and returns the name exactly as it is in the column.

    Args:
        value: The value in the column.
        where: The row and the column of the value, for error messages.

    Returns:
        The value itself.

    Raises:
        UserError: When there is no value, or when the value cannot be the name of a client.

    Example:
        >>> name_of("ward 7", "row 0"), name_of(7, "row 1")
        ('ward 7', 7)
    """
    if _is_missing(value):
        raise UserError(f"{where}: no client")
    if type(value) not in _KINDS:
        raise UserError(
            f"{where}: expected the name of a client, which is a text or a whole number, got "
            f"{shown(value)}"
        )
    named: Name = value
    return named


def _is_missing(value: Any) -> bool:
    """Returns True if a value is missing: null, NaN, an empty text or a text of only spaces."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def number_owners(
    names: Sequence[Name], where: Callable[[int], str]
) -> tuple[Indices, tuple[Name, ...]]:
    """Gives each client of a column a number.

    Args:
        names: The name of each image's client, as `name_of` returns it.
        where: A function that takes the position of an image and returns a description of its row,
            for error messages.

    Returns:
        A pair. The first is the number of each image's client, int64 (n,). The second is the names
        of the clients, in the order of these numbers. Names that are numbers are sorted by value,
        and other names as text.

    Raises:
        UserError: When two names have different types.

    Example:
        >>> number_owners(["b", "a", "b"], str)
        (array([1, 0, 1]), ('a', 'b'))
    """
    for row, name in enumerate(names):
        if type(name) is not type(names[0]):
            raise UserError(
                f"{where(row)}: expected {_KINDS[type(names[0])]} as the name of a client, as in "
                f"{where(0)}, got {shown(name)}"
            )
    distinct = tuple(sorted(set(names)))
    number = {name: owner for owner, name in enumerate(distinct)}
    owners = np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))
    return owners, distinct


def match_owners(where: str, split: str, part: Part, known: Sequence[Name]) -> Indices | None:
    """Returns the clients of a split's images, as numbers of the training split.

    A client without training images gets a number that no training image has.

    Args:
        where: The name of the data set, for messages.
        split: The name of the split, for messages.
        part: The split, with its own numbers of the clients.
        known: The names of the clients in the training split, in the order of their numbers.

    Returns:
        The number of each image's client, int64 (n,); None if one of the splits names no clients.

    Raises:
        UserError: When the names of clients have different types in the two splits.
    """
    if part.owners is None or not known:
        return None
    kinds = {type(name) for name in (*known, *part.clients)}
    if len(kinds) > 1:
        raise UserError(
            f"data set {where}: the training split names clients by {_KINDS[type(known[0])]}, but "
            f"the split {split} names them by {_KINDS[type(part.clients[0])]}; store names of the "
            "same type in both splits"
        )
    number = {name: owner for owner, name in enumerate(known)}
    for name in part.clients:
        number.setdefault(name, len(number))
    return np.array([number[name] for name in part.clients], dtype=np.int64)[part.owners]


def list_some(names: Sequence[Name]) -> str:
    """Returns a text with the first few names of clients, and the number of the remaining names.

    Args:
        names: The names to list. Unprintable characters become spaces.

    Example:
        >>> list_some(["ward 7", 8])
        'ward 7, 8'
    """
    return printable(name_some([str(name) for name in names]))


def expect_column(where: str, wanted: str, columns: Sequence[str]) -> None:
    """Checks that a column of clients exists.

    Args:
        where: The name of the data set, for messages.
        wanted: The name of the column.
        columns: The names of all columns.

    Raises:
        UserError: When the column does not exist. The message names the column with the most
            similar name.
    """
    if wanted not in columns:
        raise UserError(f"data set {where}: {unknown(SETTING, wanted, columns)}")
