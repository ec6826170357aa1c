"""Memory of all processes of a command, where shared pages count once.

The program works on Linux only, because it reads the proportional set size (PSS) of every process.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")
EVERY_SECONDS = 2.0  # one look takes about 0.05 s of a core, which the measured command lacks


class Watch(threading.Thread):
    """A thread that watches a process and all its descendants until it is stopped.

    Attributes:
        total: Peak memory of all processes together, in bytes.
        root: Peak memory of the process itself, in bytes.
        largest: Peak memory of the largest descendant, in bytes.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stop_it = pid, threading.Event()
        self.total = self.root = self.largest = 0

    def run(self) -> None:
        """Measures the memory at regular intervals."""
        while not self._stop_it.wait(EVERY_SECONDS):
            held = {pid: proportional(pid) for pid in family(self._pid)}
            self.total = max(self.total, sum(held.values()))
            self.root = max(self.root, held.pop(self._pid, 0))
            self.largest = max(self.largest, *held.values(), 0)

    def stop(self) -> None:
        """Stops the thread."""
        self._stop_it.set()
        self.join()


def watched(command: Sequence[str], folder: Path) -> Watch:
    """Runs a command in a folder to its end, hides its output, and returns its memory."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    failed = process.wait()
    watch.stop()
    if failed:
        raise SystemExit(f"{' '.join(command)} failed with {failed}")
    return watch


def family(root: int) -> list[int]:
    """Returns the ids of a process and of all its descendants."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        queue += [child for child, parent in parents.items() if parent == found[-1]]
    return found


def proportional(pid: int) -> int:
    """Returns the proportional set size of a process in bytes; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
