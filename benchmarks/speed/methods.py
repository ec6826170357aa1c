"""Seconds per round of every fine-tuning method, beside LoRA.

python benchmarks/speed/methods.py

All runs are the default job with one of the methods of `configs/grids/methods.yaml`, on the same
Ray. The repetitions take turns, so that other load on the machine affects all methods. The time of
a round is the median over all rounds but the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import strategies
from fl_vitlora.config import Config, resolve, to_mapping
from fl_vitlora.config.grid import read_grid
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.experiment.runner import run
from fl_vitlora.flower.simulation.engine import Engine

GRID = Path(__file__).resolve().parents[2] / "configs" / "grids" / "methods.yaml"
BASELINE = "lora"


def main() -> None:
    """Runs all methods, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    jobs = methods()
    found: dict[str, list[float]] = {name: [] for name in jobs}
    with tempfile.TemporaryDirectory() as folder, Engine(verbose=False) as engine:
        for repetition in range(arguments.repetitions):
            for number, (name, config) in enumerate(jobs.items()):
                given = {
                    "rounds": arguments.rounds,
                    "encryption.key_file": f"{folder}/owner.key",
                    "out": f"{folder}/{number}-{repetition}",
                }
                seconds = measure(resolve(to_mapping(config), given), engine)
                found[name] += seconds[1:]
    print(table(found))


def methods() -> Mapping[str, Config]:
    """Returns the job of each method, by the label of the method."""
    cells = read_grid(read_yaml(str(GRID)), {}).cells
    return {next(iter(cell.labels.values())): cell.config for cell in cells}


def measure(config: Config, engine: Engine) -> list[float]:
    """Runs a job, and returns the seconds of its rounds."""
    _, path = run(config, strategies.load_for(config), engine=engine)
    lines = (path / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def table(found: Mapping[str, Sequence[float]]) -> str:
    """Returns the table of all methods, each compared with LoRA."""
    typical = {name: statistics.median(seconds) for name, seconds in found.items()}
    lines = ["| method | a round (s) | of LoRA |", "|---|--:|--:|"]
    lines += [
        f"| `{name}` | {seconds:.2f} | {seconds / typical[BASELINE]:.0%} |"
        for name, seconds in typical.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
