"""The figures of the README: the default job in several settings, five seeds each.

python benchmarks/default_job.py [--seeds 0 1 2 3 4] [--out runs/table]

Each cell is a whole `python simulate.py --clients 20` of its own process, run one after the other.
Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ["--set", "encryption.steps=[]"]
SETTINGS: dict[str, list[str]] = {
    "lora+patch_embed, encrypted": [],
    "lora, encrypted": ["--method", "lora"],
    "head, encrypted": ["--method", "head"],
    "full, encrypted": ["--method", "full"],
    "lora+patch_embed, plain": PLAIN,
    "full, plain": [*PLAIN, "--method", "full"],
}


def result_of(folder: Path, flags: list[str]) -> dict[str, Any]:
    """Runs one cell unless it is there, and reads its result."""
    if not (folder / "result.json").exists():
        command = [sys.executable, "simulate.py", "--clients", "20", "--out", str(folder), *flags]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def main() -> None:
    """Runs all cells and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    arguments = parser.parse_args()
    print("| trained, images | test accuracy % | trained parameters | MB sent | saving | s |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, flags in SETTINGS.items():
        results = [
            result_of(
                arguments.out.resolve() / name.replace(", ", "-") / str(seed),
                [*flags, "--seed", str(seed)],
            )
            for seed in arguments.seeds
        ]
        accuracy = [100 * result["accuracy"] for result in results]
        wire = results[0]["communication"]
        sent = (wire["uplink_bytes"] + wire["downlink_bytes"]) / 1e6
        seconds = statistics.median(result["seconds"]["total"] for result in results)
        print(
            f"| {name} | {statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f} "
            f"| {results[0]['trainable_parameters']:,} | {sent:.1f} | {wire['saving']:.1f}x "
            f"| {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
