"""Waits for an event itself, under a watchdog of minutes.

A machine may be busy, so no number of seconds tells that something has happened by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WATCHDOG = 600.0  # seconds; only a test that hangs waits for so long
LOOK = 0.02  # seconds between two looks


def wait_until(moment: Callable[[], bool], goes_on: Callable[[], bool] = lambda: True) -> None:
    """Waits until something is so.

    Args:
        moment: A function that tells whether it is so.
        goes_on: A function that tells whether it can still become so.

    Raises:
        AssertionError: If it can no longer become so, or is not so when `WATCHDOG` is over.
    """
    deadline = time.monotonic() + WATCHDOG
    while not moment():
        assert goes_on() or moment(), "it can no longer happen"
        assert time.monotonic() < deadline, f"it has not happened within {WATCHDOG:g} s"
        time.sleep(LOOK)
