"""Peak memory of a worker for every fine-tuning method.

python benchmarks/speed/method_memory.py

Every method of `configs/grids/methods.yaml` runs the default job with one worker. Each run has a
new worker process, so that no method uses the memory of another. The figure is the largest resident
set size that the process has had (`VmHWM` of Linux), libraries included. Another worker, which
answers no message, shows the part that the imports alone need.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from memory import PROC, family
from methods import methods

import strategies
from fl_vitlora.config import Config, resolve, to_mapping
from fl_vitlora.experiment.runner import run
from fl_vitlora.federation.observer import Sight
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.simulation.worker import Worker
from fl_vitlora.flower.simulation.workers import Workers

MEGABYTE = 1e6
NAME = b"ray::Worker"  # Ray puts the name of the actor's class into the name of the process
IMPORTS = "imports alone"
ONE = Workers(device="cpu", count=1)


class Peaks:
    """An observer that reads in each round the largest memory that a worker has had.

    Attributes:
        most: The largest resident set size of a worker so far, in bytes.
    """

    def __init__(self) -> None:
        self.most = 0

    def observe(self, sight: Sight) -> None:
        """Reads the memory of all workers of this process."""
        del sight
        self.most = max([self.most, *(peak(process) for process in workers())])


def workers() -> list[int]:
    """Returns the process ids of the workers that this process has started."""
    return [process for process in family(os.getpid()) if name_of(process).startswith(NAME)]


def name_of(process: int) -> bytes:
    """Returns the command line of a process, or no text if the process has ended."""
    try:
        return (PROC / str(process) / "cmdline").read_bytes()
    except OSError:
        return b""


def peak(process: int) -> int:
    """Returns the largest resident set size of a process in bytes."""
    for line in (PROC / str(process) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"the system does not tell the memory of process {process}")


def of_imports() -> int:
    """Returns the memory of a worker that has imported everything and answered no message."""
    kind: Any = Worker
    actor = kind.options(**ONE.resources).remote()
    found = peak(ray.get(actor.process.remote()))
    ray.kill(actor)
    return found


def of_run(config: Config, engine: Engine) -> int:
    """Runs a job with a new worker, and returns the memory of this worker."""
    engine.start(ONE).end_actors()
    peaks = Peaks()
    run(config, strategies.load_for(config), engine=engine, observers=[peaks])
    return peaks.most


def main() -> None:
    """Runs all methods, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="names of methods; all by default")
    arguments = parser.parse_args()
    jobs = {n: c for n, c in methods().items() if n in arguments.only or not arguments.only}
    found: dict[str, list[int]] = {IMPORTS: [], **{name: [] for name in jobs}}
    with tempfile.TemporaryDirectory() as folder, Engine(verbose=False) as engine:
        engine.start(ONE).wait()
        for repetition in range(arguments.repetitions):
            found[IMPORTS].append(of_imports())
            for number, (name, config) in enumerate(jobs.items()):
                given = {
                    "rounds": arguments.rounds,
                    "engine.device": "cpu",
                    "engine.workers": 1,
                    "encryption.key_file": f"{folder}/owner.key",
                    "out": f"{folder}/{number}-{repetition}",
                }
                found[name].append(of_run(resolve(to_mapping(config), given), engine))
    print(table(found))


def table(found: Mapping[str, Sequence[int]]) -> str:
    """Returns the table of all methods, with medians in megabytes."""
    typical = {name: statistics.median(sizes) / MEGABYTE for name, sizes in found.items()}
    base = typical.pop(IMPORTS)
    lines = [
        f"{IMPORTS}: {base:.0f} MB",
        "",
        "| method | a worker (MB) | beyond the imports (MB) |",
        "|---|--:|--:|",
    ]
    lines += [f"| `{n}` | {size:.0f} | {size - base:.0f} |" for n, size in typical.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
