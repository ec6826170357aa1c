"""Reads and writes numbers of bytes with units, such as 50MB."""

from __future__ import annotations

import re
import typing

from fl_vitlora.errors import UserError, shown

Bytes = typing.NewType("Bytes", int)

# Decimal units, as network speeds use them, and binary units.
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MOST = 1e18  # bytes; no run sends more
AMOUNT = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[A-Za-z]*)\s*", re.ASCII)


def parse_bytes(amount: object, where: str) -> int:
    """Reads a number of bytes, with or without a unit.

    Args:
        amount: A whole number of bytes, or a text with a number and a unit, such as "1.5 MB". The
            unit may be in upper or lower case.
        where: The name of the setting, for error messages.

    Returns:
        The number of bytes, rounded down.

    Raises:
        UserError: If the text is not a number with a known unit, or if it means less than 1 byte or
            at least 10¹⁸ bytes.

    Example:
        >>> parse_bytes("1.5 MB", "budget"), parse_bytes("2KiB", "budget"), parse_bytes(7, "budget")
        (1500000, 2048, 7)
    """
    match = AMOUNT.fullmatch(str(amount))
    factors = {unit.lower(): factor for unit, factor in UNITS.items()}
    if match is None or isinstance(amount, bool) or (match["unit"] or "B").lower() not in factors:
        units = ", ".join(UNITS)
        raise UserError(
            f"{where}: expected a number of bytes such as 50MB or 1.5GiB (units: {units}), got "
            f"{shown(amount)}"
        )
    found = float(match["number"]) * factors[(match["unit"] or "B").lower()]
    if not 1 <= found < MOST:
        raise UserError(
            f"{where}: expected at least 1 byte and less than {MOST:.0e}, got {shown(amount)}"
        )
    return int(found)


STEP = 1000  # the factor between two decimal units


def unit_of(count: float) -> tuple[int, str]:
    """Returns the decimal unit in which to show a number of bytes: its factor and its name.

    Example:
        >>> unit_of(60_413), unit_of(999_960), unit_of(7)
        ((1000, 'kB'), (1000000, 'MB'), (1, 'B'))
    """
    factor, names = 1, ["B", "kB", "MB", "GB", "TB"]
    for name in names[:-1]:
        if round(count / factor, 0 if factor == 1 else 1) < STEP:
            return factor, name
        factor *= STEP
    return factor, names[-1]


def readable_bytes(count: float) -> str:
    """Returns a number of bytes as text with a decimal unit.

    Example:
        >>> readable_bytes(60_413), readable_bytes(343_225_384), readable_bytes(812)
        ('60.4 kB', '343.2 MB', '812 B')
    """
    factor, unit = unit_of(count)
    return f"{count:.0f} B" if factor == 1 else f"{count / factor:.1f} {unit}"
