"""What names a class: a text, a whole number, true or false; never nothing."""

from __future__ import annotations

import math
import re
from typing import Any

from fl_vitlora.data.classes import plain_name
from fl_vitlora.errors import UserError, shown

WHOLE = re.compile(r"(-?\d+)\.0+")  # as tables write whole numbers where a value is missing


def class_of(value: Any, where: str) -> str:
    """Names the class that a value stands for.

    Args:
        value: Of a label column.
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
