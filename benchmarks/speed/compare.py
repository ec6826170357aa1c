"""Seconds per round, start-up and memory of this project, bare PyTorch and other simulators.

python benchmarks/speed/compare.py
python benchmarks/speed/compare.py --only bare ours --config benchmarks/speed/vit_small.yaml

All contenders do the same local steps on the same encrypted shards (`work.py`) of the default job,
or of another experiment with `--config`. They compute in float32, with the same number of worker
processes of one thread each. They take turns, so that other load on the machine affects all of
them. The time of a round is the median over a run without its first two rounds. Ratios are relative
to the bare processes of the same repetition.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory import Watch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PFL = "pfl==0.6.0"
WARM_UP = 2  # first rounds that are not counted
NAMES = {
    "bare": "bare PyTorch, no federation",
    "ours": "this project",
    "cohort": "this project, --cohort 5",
    "stock": "a stock Flower app",
    "pfl": "pfl-research",
}
OURS = {"ours": [], "cohort": ["--cohort", "5"]}  # options in addition to the default job's
Line = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """The measurements of one run of a contender.

    Attributes:
        seconds: Median duration of a round in seconds.
        start: Seconds from the command to the first local step, or shortly before it.
        accuracy: Accuracy at the end; None if it was not measured.
        total: Peak memory of all processes together, in bytes.
        root: Peak memory of the first process, in bytes.
        largest: Peak memory of the largest other process, in bytes.
    """

    seconds: float
    start: float
    accuracy: float | None
    total: int
    root: int
    largest: int

    @property
    def held(self) -> tuple[int, int, int]:
        """Returns the three measurements of memory: total, root and largest."""
        return self.total, self.root, self.largest


def main() -> None:
    """Runs all contenders, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pfl", type=Path, help="folder of the environment with pfl-research")
    parser.add_argument("--config", type=Path, help="an experiment instead of the default job")
    parser.add_argument("--set", action="append", default=[], help="a setting of the experiment")
    parser.add_argument("--only", nargs="+", choices=list(NAMES))
    arguments = parser.parse_args()
    chosen = arguments.only or list(NAMES)
    found: dict[str, list[Measured]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "shared"
        asked = ["--rounds", str(arguments.rounds), "--workers", str(arguments.workers)]
        simulate = [sys.executable, str(ROOT / "simulate.py"), "--clients", "20"]
        if arguments.config is not None:
            simulate += ["--config", str(arguments.config.resolve())]
        for setting in arguments.set:
            simulate += ["--set", setting]
        simulate += ["--set", f"encryption.key_file={Path(folder) / 'owner.key'}"]
        measure([*simulate, "--rounds", "3", "--out", str(shared)], functools.partial(ours, shared))
        work = ["--folder", str(shared), *asked]
        commands = {
            "bare": [sys.executable, str(HERE / "bare.py"), *work],
            "stock": [sys.executable, str(HERE / "stock.py"), *work],
        }
        if "pfl" in chosen:
            python = environment(arguments.pfl or Path(folder) / "pfl")
            commands["pfl"] = [python, "-m", "torch.distributed.run", "--nproc-per-node"]
            commands["pfl"] += [str(arguments.workers), str(HERE / "pfl_research.py"), *work]
        for repetition in range(arguments.repetitions):
            for name in chosen:
                out = Path(folder) / f"{name}-{repetition}"
                if name in OURS:
                    command = [*simulate, *asked, *OURS[name], "--out", str(out)]
                    run = measure(command, functools.partial(ours, out))
                else:
                    run = measure(commands[name], printed)
                found[name].append(run)
                print(f"{name} {repetition + 1}: {run}", file=sys.stderr, flush=True)
    print(table(found))


def measure(command: list[str], read: Callable[[str], Line]) -> Measured:
    """Runs a command to its end, and watches its memory.

    Args:
        command: Command line of a contender.
        read: Function that finds the contender's result in its output.
    """
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    begin = time.time()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    watch = Watch(process.pid)
    watch.start()
    output, _ = process.communicate()
    watch.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    line = read(output)
    return Measured(
        seconds=statistics.median(line["seconds"][WARM_UP:]),
        start=line["ready"] - begin if "ready" in line else line["start"],
        accuracy=line["accuracy"],
        total=watch.total,
        root=watch.root,
        largest=watch.largest,
    )


def printed(output: str) -> Line:
    """Returns a contender's result, the last line of its output."""
    line: Line = json.loads(output.splitlines()[-1])
    return line


def ours(folder: Path, output: str) -> Line:
    """Returns the result of this project from its run folder."""
    del output
    result = json.loads((folder / "result.json").read_text())
    rounds = (folder / "rounds.jsonl").read_text().splitlines()
    return {
        "seconds": [json.loads(line)["seconds"] for line in rounds],
        "start": result["seconds"]["setup"],
        "accuracy": result["accuracy"],
    }


def environment(folder: Path) -> str:
    """Makes an environment with pfl-research on top of the packages that are installed here.

    Returns:
        Path of the environment's Python.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (found,) = (folder / "lib").glob("python*/site-packages")
        (found / "over.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", PFL, "wheel"], check=True)
    return str(python)


def table(found: dict[str, list[Measured]]) -> str:
    """Returns the table of results, with a line for each contender."""
    lines = [
        "| | s a round | to the bare processes | start, s | accuracy % | MB in all | first process "
        "| largest other |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    bare = [run.seconds for run in found.get("bare", [])]
    for name, runs in found.items():
        seconds, ratio = [run.seconds for run in runs], ""
        if bare:
            ratios = [mine / limit for mine, limit in zip(seconds, bare, strict=True)]
            ratio = f"{spread(ratios, 2)}x"
        last = runs[-1].accuracy
        cells = [
            NAMES[name],
            spread(seconds, 3),
            ratio,
            spread([run.start for run in runs], 1),
            "" if last is None else f"{100 * last:.2f}",
            *(f"{max(sizes) / 1e6:.0f}" for sizes in zip(*(run.held for run in runs), strict=True)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(numbers: list[float], digits: int) -> str:
    """Returns a median with the smallest and the largest number, as text."""
    low, high = min(numbers), max(numbers)
    return f"{statistics.median(numbers):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
