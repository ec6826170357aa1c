"""What names a class: a text, a whole number, true or false; never nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from fl_vitlora.data.classes import plain_name
from fl_vitlora.errors import UserError, shown

UNLABELLED = -1  # as the hub and its library write it
WHOLE = re.compile(r"(-?\d+)\.0+")  # as tables write whole numbers where a value is missing


def class_of(value: Any, where: str) -> str:
    """Names the class that a value stands for.

    Args:
        value: A value of a label column.
        where: Its row and column, for messages.

    Returns:
        The name.

    Raises:
        UserError: When the value is nothing, or cannot be a class.

    Example:
        >>> [class_of(value, "row 0") for value in ("cat ", 3, 3.0, "3.0", True)]
        ['cat', '3', '3', '3', 'True']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise UserError(f"{where}: no label")
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"{where}: expected a class, got the number {value}")
        value = int(value)
    if not isinstance(value, str | int):
        raise UserError(f"{where}: expected a class, got {shown(value)}")
    name = plain_name(str(value).strip())
    if not name:
        raise UserError(f"{where}: no label")
    whole = WHOLE.fullmatch(name)
    return whole[1] if whole else name


def expect_no_mark(names: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuses -1 beside whole numbers, where it means "no label"; not beside 1 alone.

    Args:
        names: The class of each row.
        where: Names a row, for messages.

    Raises:
        UserError: When a row has no label.
    """
    mark = str(UNLABELLED)
    if mark not in names:
        return
    others = set(names) - {mark}
    if others != {"1"} and all(name.isdecimal() for name in others):
        raise UserError(f"{where(names.index(mark))}: no label ({mark})")
