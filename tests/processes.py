"""Which processes belong to a program, read from Linux's /proc."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")


def descendants(process: int) -> Iterator[int]:
    """Names all processes below one."""
    parents = {}
    for place in PROC.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            told = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(told[1])
    waiting = [process]
    while waiting:
        parent = waiting.pop()
        waiting += (children := [child for child, above in parents.items() if above == parent])
        yield from children


def command(process: int) -> str:
    """Reads what a process was called with; nothing of one that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (PROC / str(process) / "cmdline").read_text().replace("\0", " ").strip()
    return ""


def named(program: int, *beginnings: str) -> list[int]:
    """Finds the processes below a program whose command begins, or whose file's name is, so."""
    return [
        process
        for process in descendants(program)
        if command(process).startswith(beginnings)
        or command(process).partition(" ")[0].endswith(tuple(f"/{name}" for name in beginnings))
    ]


def wait_for_end(processes: Iterable[int], seconds: float) -> list[int]:
    """Waits until processes have ended, and names those that have not."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [process for process in left if command(process)]
    return left
