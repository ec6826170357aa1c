"""Seconds per round of methods whose clients keep features, with and without the kept features.

python benchmarks/speed/features.py

All runs are the default job with another method, on the same Ray. They take turns, so that other
load on the machine affects all of them. The time of a round is the median over all rounds but the
first, in which the clients compute their features. The last column is the share of LoRA's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import strategies
from fl_vitlora.config import load
from fl_vitlora.experiment.runner import run
from fl_vitlora.flower.simulation.engine import Engine

KEPT = 1024  # megabytes of disk space for features
CONTENDERS = {
    "lora": ("lora", KEPT),
    "head, kept features": ("head", KEPT),
    "head, features of each step": ("head", 0),
    "losa, kept features": ("losa", KEPT),
    "losa, features of each step": ("losa", 0),
}


def main() -> None:
    """Runs all contenders, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    found: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    ends: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Engine(verbose=False) as engine:
        for repetition in range(arguments.repetitions):
            for name, (method, kept) in CONTENDERS.items():
                given = {
                    "finetuning.method": method,
                    "engine.feature_cache_mb": kept,
                    "engine.workers": arguments.workers,
                    "rounds": arguments.rounds,
                    "encryption.key_file": f"{folder}/owner.key",
                    "out": f"{folder}/{method}-{kept}-{repetition}",
                }
                config = load(None, given)
                result, path = run(config, strategies.load_for(config), engine=engine)
                found[name].append(seconds(path))
                ends[name] = result["accuracy"]
    print(table(found, ends))


def seconds(path: Path) -> list[float]:
    """Returns the duration of each round of a run folder."""
    lines = (path / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def table(found: dict[str, list[list[float]]], ends: dict[str, float]) -> str:
    """Returns the table: the first round, the other rounds, the share of LoRA, the accuracy."""
    lines = ["| method | first round (s) | other rounds (s) | of LoRA | accuracy |"]
    lines.append("|---|--:|--:|--:|--:|")
    lora = statistics.median(second for run in found["lora"] for second in run[1:])
    for name, runs in found.items():
        first = statistics.median(run[0] for run in runs)
        others = statistics.median(second for run in runs for second in run[1:])
        share = f"{others / lora:.0%} | {ends[name]:.3f}"
        lines.append(f"| {name} | {first:.2f} | {others:.2f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
