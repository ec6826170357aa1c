"""Does nothing until the program that started it has ended; see `ray_helpers`.

This file is a program of its own, which imports nothing but the standard library. If its standard
input is a pipe, the parent process holds the other end, and the pipe ends with the parent.
"""

from __future__ import annotations

import os
import stat
import time

STDIN = 0
INIT = 1  # the process that adopts the children of processes that have ended
SECONDS_TO_LOOK = 1.0


def main() -> None:
    """Waits until the parent process has ended."""
    if stat.S_ISFIFO(os.fstat(STDIN).st_mode):
        while os.read(STDIN, 1):
            pass
        return
    parent = os.getppid()
    while os.getppid() == parent != INIT:
        time.sleep(SECONDS_TO_LOOK)


if __name__ == "__main__":
    main()
