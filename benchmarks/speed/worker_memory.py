"""What each further worker costs in memory, beside a Ray actor that has imported torch and no more.

python benchmarks/speed/worker_memory.py

Runs the default job, and actors that do nothing, with one worker and with more; the difference of
what all processes hold together (PSS) goes by the number of workers that came in addition.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from memory import Watch

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
    parser.add_argument("--workers", type=int, default=4, help="to compare with one (4)")
    parser.add_argument("--rounds", type=int, default=4)
    many = parser.parse_args().workers
    rounds = str(parser.parse_args().rounds)
    with tempfile.TemporaryDirectory() as folder:
        key = f"encryption.key_file={Path(folder) / 'owner.key'}"

        def job(workers: int) -> list[str]:
            out = str(Path(folder) / f"run-{workers}")
            options = ["--rounds", rounds, "--out", out, "--set", key, "--workers", str(workers)]
            return [sys.executable, str(ROOT / "simulate.py"), "--device", "cpu", *options]

        def idle(workers: int) -> list[str]:
            return [sys.executable, "-c", IDLE.format(workers=workers)]

        each = {
            name: (held(command(many)) - held(command(1))) / (many - 1)
            for name, command in (("torch and Ray alone", idle), ("this project", job))
        }
    print("| a further worker of | MB |\n|---|--:|")
    for name, size in each.items():
        print(f"| {name} | {size / MEGABYTE:.0f} |")
    print(
        f"| beyond the imports | {(each['this project'] - each['torch and Ray alone']) / 1e6:.0f} |"
    )


def held(command: list[str]) -> int:
    """Runs a command and returns the most that all its processes held together, in bytes."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    failed = process.wait()
    watch.stop()
    if failed:
        raise SystemExit(f"{' '.join(command)} failed with {failed}")
    return watch.total


if __name__ == "__main__":
    main()
