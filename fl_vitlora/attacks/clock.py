"""The time budget of an attack.

No attack is interrupted from outside. An attack that takes long asks its clock between two steps,
and the clock raises an error when the budget is spent. So a guess is whole or there is none, and
how fast the machine is changes no figure.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


class OutOfTimeError(Exception):
    """An error: the time budget of an attack is spent."""


@dataclass(frozen=True)
class Clock:
    """A clock that an attack asks.

    Attributes:
        ends: When the budget is spent, in seconds of `time.monotonic`.
    """

    ends: float = math.inf

    @classmethod
    def of(cls, seconds: float) -> Clock:
        """Returns a clock whose budget of some seconds begins now."""
        return cls(time.monotonic() + seconds)

    def check(self) -> None:
        """Checks that there is time left.

        Raises:
            OutOfTimeError: If the budget is spent.

        Example:
            >>> Clock().check()
            >>> Clock.of(0).check()
            Traceback (most recent call last):
            fl_vitlora.attacks.clock.OutOfTimeError
        """
        if time.monotonic() >= self.ends:
            raise OutOfTimeError


UNLIMITED = Clock()


def unhurried() -> None:
    """Checks nothing: the check of a search without a time budget."""
