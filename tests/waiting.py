"""Waits for an event itself, under a watchdog of minutes; and ports that no program gets by chance.

A machine may be busy, so no number of seconds tells that something has happened by then.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

WATCHDOG = 600.0  # seconds; only a test that hangs waits for so long
LOOK = 0.02  # seconds between two looks
PORTS = range(20_000, 32_000)  # below those that Linux, macOS and Windows give out by themselves
handed_out: set[int] = set()


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


def free_port() -> int:
    """Returns a port on which nobody listens, another one in every call.

    The system gives ports out from a range of its own to every program that asks for any port. A
    port from that range could be another program's before the caller has opened it.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if port in handed_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # it is taken
                continue
        handed_out.add(port)
        return port
    raise OSError("all ports are taken")
