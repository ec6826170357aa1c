"""Time that the program takes to answer with its help, its version or an error.

python benchmarks/speed/start_up.py

Each command runs several times, in a new process each time. The processor time is the cost of the
program itself. The clock time is the time that a person waits, while other programs run as well.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "an unknown flag": ["--clinets", "20"],
    "a wrong value": ["--set", "training.batch_size=0"],
    "an unknown model": ["--model", "vit_that_nobody_made"],
}
WATCHDOG = 300  # seconds


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="runs of each command (5)")
    times = parser.parse_args().times
    print("| command | processor, median s | clock, median s | clock, longest s |")
    print("|---|--:|--:|--:|")
    for name, words in COMMANDS.items():
        spent = [measure(words) for _ in range(times)]
        worked, waited = zip(*spent, strict=True)
        print(f"| {name} | {median(worked):.2f} | {median(waited):.2f} | {max(waited):.2f} |")


def measure(words: Sequence[str]) -> tuple[float, float]:
    """Runs the program once.

    Returns:
        The processor time and the clock time, both in seconds.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "simulate.py"), *words],
        cwd=ROOT,
        capture_output=True,
        timeout=WATCHDOG,
        check=False,
    )
    after, waited = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begin
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return worked, waited


if __name__ == "__main__":
    main()
