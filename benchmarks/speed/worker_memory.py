"""Memory of each additional worker, compared with a Ray actor that has only imported torch.

python benchmarks/speed/worker_memory.py

The program runs the default job, and actors that do nothing, with one worker and with several. The
difference in memory of all processes together (PSS) is divided by the number of additional workers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from memory import watched

ROOT = Path(__file__).resolve().parent.parent.parent
MEGABYTE = 1e6

IDLE = """
import time
import ray

@ray.remote(num_cpus=1)
class Actor:
    def ready(self):
        import torch
        torch.set_num_threads(1)
        return torch.zeros(1).add(1).item()

ray.init(address="local", num_cpus={workers}, include_dashboard=False, log_to_driver=False)
actors = [Actor.remote() for _ in range({workers})]
ray.get([actor.ready.remote() for actor in actors])
time.sleep(3)
"""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4, help="workers of the larger run (4)")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    many, rounds = arguments.workers, str(arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        key = f"encryption.key_file={Path(folder) / 'owner.key'}"

        def job(workers: int) -> list[str]:
            out = str(Path(folder) / f"run-{workers}")
            options = ["--rounds", rounds, "--out", out, "--set", key, "--workers", str(workers)]
            return [sys.executable, str(ROOT / "simulate.py"), "--device", "cpu", *options]

        def idle(workers: int) -> list[str]:
            return [sys.executable, "-c", IDLE.format(workers=workers)]

        imports, own = (
            (watched(of(many), ROOT).total - watched(of(1), ROOT).total) / (many - 1)
            for of in (idle, job)
        )
    print("| a further worker of | MB |\n|---|--:|")
    print(f"| torch and Ray alone | {imports / MEGABYTE:.0f} |")
    print(f"| this project | {own / MEGABYTE:.0f} |")
    print(f"| beyond the imports | {(own - imports) / MEGABYTE:.0f} |")


if __name__ == "__main__":
    main()
