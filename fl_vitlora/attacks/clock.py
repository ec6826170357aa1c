"""The time budget of an attack.

No attack is interrupted from outside. Between its steps an attack asks its clock whether time is
left. If the budget is spent, the clock raises an error. So a guess is either complete or missing,
and the speed of the machine changes no figure.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


class OutOfTimeError(Exception):
    """The error that is raised when the time budget of an attack is spent."""


@dataclass(frozen=True)
class Clock:
    """A clock that an attack asks whether it may continue.

    Attributes:
        ends: When the budget is spent, in seconds of `time.monotonic`.
    """

    ends: float = math.inf

    @classmethod
    def of(cls, seconds: float) -> Clock:
        """Returns a clock with a budget of `seconds` seconds that begins now."""
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
    """Does nothing. Searches without a time budget call this in place of `Clock.check`."""
