"""Seconds per round of methods whose clients keep features, with and without the kept features.

python benchmarks/speed/features.py
python benchmarks/speed/features.py --kept-only --config benchmarks/speed/vit_small.yaml

All runs are the default job, or the job of `--config`, with another method, on the same Ray. They
take turns, so that other load on the machine affects all of them. The time of a round is the median
over all rounds but the first, in which the clients compute their features. Processor seconds are
the time that all processes together computed in a round: the mean of a run from its second round to
the last, and the median over the runs. Other load on the machine changes processor seconds less
than the time of a round. Each column "of LoRA" shows the column before it as a share of LoRA's
value.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from memory import PROC, family

import strategies
from fl_vitlora.config import load
from fl_vitlora.experiment.runner import run
from fl_vitlora.federation.observer import Sight
from fl_vitlora.flower.simulation.engine import Engine

KEPT = 1024  # megabytes of disk space for features
CONTENDERS = {
    "lora": ("lora", KEPT),
    "head, kept features": ("head", KEPT),
    "head, features of each step": ("head", 0),
    "losa, kept features": ("losa", KEPT),
    "losa, features of each step": ("losa", 0),
}


class ProcessorClock:
    """An observer that reads in each round how much processor time all processes have used.

    Attributes:
        read: The processor seconds since the processes began, after the clients of each round have
            answered.
    """

    def __init__(self) -> None:
        self.read: list[float] = []

    def observe(self, sight: Sight) -> None:
        """Reads the clock of this process and of all its descendants."""
        del sight
        self.read.append(sum(map(processor_seconds, family(os.getpid()))))

    @property
    def seconds_a_round(self) -> float:
        """Returns the mean of all rounds but the first."""
        return (self.read[-1] - self.read[0]) / (len(self.read) - 1)


def processor_seconds(process: int) -> float:
    """Returns the user and system time of a process; 0 if the process has ended."""
    try:
        text = (PROC / str(process) / "stat").read_text()
    except OSError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Runs all contenders, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--config", help="an experiment instead of the default job")
    parser.add_argument("--kept-only", action="store_true", help="leave out the slower runs")
    arguments = parser.parse_args()
    chosen = {n: c for n, c in CONTENDERS.items() if c[1] or not arguments.kept_only}
    found: dict[str, list[list[float]]] = {name: [] for name in chosen}
    computed: dict[str, list[float]] = {name: [] for name in chosen}
    ends: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Engine(verbose=False) as engine:
        for repetition in range(arguments.repetitions):
            for name, (method, kept) in chosen.items():
                given = {
                    "finetuning.method": method,
                    "engine.feature_cache_mb": kept,
                    "engine.workers": arguments.workers,
                    "rounds": arguments.rounds,
                    "encryption.key_file": f"{folder}/owner.key",
                    "out": f"{folder}/{method}-{kept}-{repetition}",
                }
                config = load(arguments.config, given)
                clock, strategy = ProcessorClock(), strategies.load_for(config)
                result, path = run(config, strategy, engine=engine, observers=[clock])
                found[name].append(seconds(path))
                computed[name].append(clock.seconds_a_round)
                ends[name] = result["accuracy"]
    print(table(found, computed, ends))


def seconds(path: Path) -> list[float]:
    """Returns the duration of each round of a run folder."""
    lines = (path / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def table(
    found: dict[str, list[list[float]]], computed: dict[str, list[float]], ends: dict[str, float]
) -> str:
    """Returns the table of all contenders.

    Args:
        found: For each contender and run, the seconds of each round.
        computed: For each contender and run, the processor seconds of a round.
        ends: The accuracy of the last run of each contender.
    """
    lines = [
        "| method | first round (s) | other rounds (s) | of LoRA | processor (s) | of LoRA "
        "| accuracy |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    typical = {
        name: (
            statistics.median(second for run in runs for second in run[1:]),
            statistics.median(computed[name]),
        )
        for name, runs in found.items()
    }
    for name, runs in found.items():
        first = statistics.median(run[0] for run in runs)
        shares = [
            f"{own:.2f} | {own / lora:.0%}"
            for own, lora in zip(typical[name], typical["lora"], strict=True)
        ]
        lines.append(f"| {name} | {first:.2f} | {' | '.join(shares)} | {ends[name]:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
