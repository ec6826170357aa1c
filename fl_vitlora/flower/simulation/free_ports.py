"""Finds a port that no other program gets by chance before the caller opens it.

A program can ask the operating system for any free port. The system then chooses a port from a
fixed range. A free port in this range may belong to another program a moment later. Therefore this
module chooses a port below the ranges of Linux, macOS and Windows.
"""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)
LOOPBACK = "127.0.0.1"

_handed_out: set[int] = set()


def free_port() -> int:
    """Returns a port of the loopback address on which no program listens.

    Within one process, each call returns a different port.

    Raises:
        OSError: If no port is free.
    """
    first = random.SystemRandom().randrange(len(PORTS))
    for step in range(len(PORTS)):
        port: int = PORTS[(first + step) % len(PORTS)]
        if port not in _handed_out and _is_free(port):
            _handed_out.add(port)
            return port
    raise OSError(f"none of the ports from {PORTS[0]} to {PORTS[-1]} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
