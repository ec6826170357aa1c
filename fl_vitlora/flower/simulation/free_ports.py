"""Finds a port that no other program gets by chance before the caller opens it.

The system gives a port to every program that asks for any port, and takes it from a range of its
own. A port from that range that is free now can be another program's a moment later. Therefore this
module chooses a port below the ranges of Linux, macOS and Windows.
"""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)
LOOPBACK = "127.0.0.1"

_handed_out: set[int] = set()


def free_port() -> int:
    """Returns a port of the loopback address on which nobody listens.

    Each call of a process returns another port.

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
