"""Converts the values of label columns to class names.

A class can be named by a text, a whole number, true or false, but not by an empty value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from fl_vitlora.data.classes import plain_name
from fl_vitlora.errors import UserError, shown

UNLABELLED = -1  # the value for "no label" in data sets of the hub
WHOLE = re.compile(r"(-?\d+)\.0+")  # a whole number in a column in which a value is missing


def class_of(value: Any, where: str) -> str:
    """Returns the name of the class for a value of a label column.

    Args:
        value: The value in a label column.
        where: The row and column of the value, for error messages.

    Returns:
        The name of the class.

    Raises:
        UserError: When the value is empty or cannot be the name of a class.

    Example:
        >>> [class_of(value, "row 0") for value in ("cat ", 3, 3.0, "3.0", True)]
        ['cat', '3', '3', '3', 'True']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise UserError(f"{where}: no label")
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"{where}: expected a class name or a whole number, got {value}")
        value = int(value)
    if not isinstance(value, str | int):
        raise UserError(f"{where}: expected a class name or a whole number, got {shown(value)}")
    name = plain_name(str(value).strip())
    if not name:
        raise UserError(f"{where}: no label")
    whole = WHOLE.fullmatch(name)
    return whole[1] if whole else name


def expect_no_mark(names: Sequence[str], where: Callable[[int], str]) -> None:
    """Raises an error if a row has the label -1 and -1 means "no label".

    If all other labels are whole numbers, -1 means "no label". There is one exception: if the only
    other label is 1, -1 is a class.

    Args:
        names: The class name of each row.
        where: A function that takes the position of a row and returns its description, for error
            messages.

    Raises:
        UserError: When a row has no label.
    """
    mark = str(UNLABELLED)
    if mark not in names:
        return
    others = set(names) - {mark}
    if others != {"1"} and all(name.isdecimal() for name in others):
        raise UserError(f"{where(names.index(mark))}: no label ({mark})")
