"""Arguments of codecs: how each argument is read from text, and which values are allowed.

Specifications of codecs also arrive over the network, so every argument has a lower and an upper
bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

WHOLE = re.compile("[0-9]{1,6}")
DECIMAL = re.compile(r"[0-9]{0,3}\.?[0-9]{1,20}(e-[0-9]{1,3})?")


class Argument(Protocol):
    """The type of a codec's argument; `str(argument)` describes the allowed values."""

    def read(self, text: str) -> object:
        """Reads a value, or raises `ValueError` if the text is not a value of this type."""

    def allows(self, value: object) -> bool:
        """Returns True if the value is of this type and within its bounds."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """An argument whose values are whole numbers between two bounds.

    Attributes:
        low: The smallest allowed value.
        high: The largest allowed value.

    Example:
        >>> str(Whole(low=1, high=127)), Whole(low=1, high=127).allows(128)
        ('a whole number from 1 to 127', False)
    """

    low: int
    high: int

    def read(self, text: str) -> int:
        """Reads a whole number written in decimal digits."""
        if not WHOLE.fullmatch(text):
            raise ValueError("expected a whole number of at most six digits")
        return int(text)

    def allows(self, value: object) -> bool:
        """Returns True if the value is an int from low to high."""
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """An argument whose values are numbers above 0 and at most 1."""

    def read(self, text: str) -> float:
        """Reads a number written in decimal digits; `allows` checks that it is in (0, 1]."""
        if not DECIMAL.fullmatch(text):
            raise ValueError("expected a decimal fraction, for example 0.05")
        return float(text)

    def allows(self, value: object) -> bool:
        """Returns True if the value is a float in (0, 1]."""
        return type(value) is float and 0 < value <= 1

    def __str__(self) -> str:
        return "a number above 0 and at most 1"


@dataclass(frozen=True, kw_only=True)
class Number:
    """An argument whose values are numbers above 0 and below a bound.

    Attributes:
        below: The upper bound; the bound itself is not allowed.
    """

    below: float

    def read(self, text: str) -> float:
        """Reads a number written in decimal digits; `allows` checks that it is below the bound."""
        if not DECIMAL.fullmatch(text):
            raise ValueError("expected a decimal number, for example 0.5")
        return float(text)

    def allows(self, value: object) -> bool:
        """Returns True if the value is a float between 0 and the bound, both excluded."""
        return type(value) is float and 0 < value < self.below

    def __str__(self) -> str:
        return f"a number above 0 and below {self.below:g}"


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """An argument whose values are a few words.

    Attributes:
        words: The allowed words.
    """

    words: tuple[str, ...]

    def read(self, text: str) -> str:
        """Returns the text itself; `allows` says whether the text is one of the words."""
        return text

    def allows(self, value: object) -> bool:
        """Returns True if the value is one of the words."""
        return value in self.words

    def __str__(self) -> str:
        return " or ".join(self.words)


BLOCK: dict[str, Argument] = {"argument": Whole(low=8, high=65536)}
LEVELS: dict[str, Argument] = {"argument": Whole(low=1, high=127)}
RANK: dict[str, Argument] = {"argument": Whole(low=1, high=4096)}
FRACTION: dict[str, Argument] = {"argument": Share()}
STEP: dict[str, Argument] = {"argument": Number(below=1.98)}
ROUNDING: dict[str, Argument] = {"argument": OneOf(words=("stochastic", "nearest"))}
