"""Seconds per round and memory of every fine-tuning method, beside LoRA.

python benchmarks/speed/methods.py

All runs are the default job with one of the methods of `configs/grids/methods.yaml`, on the same
Ray. The repetitions take turns, so that other load on the machine affects all methods. The time of
a round is the median over all rounds but the first. The memory is that of the largest worker at its
peak, where pages that processes share count once; it is the largest of all repetitions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from memory import Watch

import strategies
from fl_vitlora.config import Config, resolve, to_mapping
from fl_vitlora.config.grid import read_grid
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.experiment.runner import run
from fl_vitlora.flower.simulation.engine import Engine

GRID = Path(__file__).resolve().parents[2] / "configs" / "grids" / "methods.yaml"
BASELINE, MEGABYTE = "lora", 1e6


@dataclasses.dataclass
class Measured:
    """What was measured for one method.

    Attributes:
        seconds: The seconds of all rounds but the first, of all repetitions.
        memory: The memory of the largest worker at its peak, in bytes.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    memory: int = 0


def main() -> None:
    """Runs all methods, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    jobs = methods()
    found = {name: Measured() for name in jobs}
    with tempfile.TemporaryDirectory() as folder, Engine(verbose=False) as engine:
        for repetition in range(arguments.repetitions):
            for number, (name, config) in enumerate(jobs.items()):
                given = {
                    "rounds": arguments.rounds,
                    "encryption.key_file": f"{folder}/owner.key",
                    "out": f"{folder}/{number}-{repetition}",
                }
                seconds, memory = measure(resolve(to_mapping(config), given), engine)
                found[name].seconds += seconds[1:]
                found[name].memory = max(found[name].memory, memory)
    print(table(found))


def methods() -> Mapping[str, Config]:
    """Returns the job of each method, by the label of the method."""
    cells = read_grid(read_yaml(str(GRID)), {}).cells
    return {next(iter(cell.labels.values())): cell.config for cell in cells}


def measure(config: Config, engine: Engine) -> tuple[Sequence[float], int]:
    """Runs a job; returns the seconds of its rounds, and the memory of its largest worker."""
    watch = Watch(os.getpid())
    watch.start()
    try:
        _, path = run(config, strategies.load_for(config), engine=engine)
    finally:
        watch.stop()
    lines = (path / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines], watch.largest


def table(found: Mapping[str, Measured]) -> str:
    """Returns the table of all methods, beside LoRA."""
    typical = {name: statistics.median(one.seconds) for name, one in found.items()}
    lines = ["| method | a round (s) | of LoRA | a worker (MB) |", "|---|--:|--:|--:|"]
    lines += [
        f"| `{name}` | {typical[name]:.2f} | {typical[name] / typical[BASELINE]:.0%} "
        f"| {one.memory / MEGABYTE:.0f} |"
        for name, one in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
