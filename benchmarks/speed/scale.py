"""Cost of registered clients: a cohort of 100 clients among more and more registered ones.

python benchmarks/speed/scale.py

Every client has two made-up images, because only time and memory are measured. In each round 100
clients train one step. The program prints the seconds until the first round, the median seconds of
a round, and the memory of the driver and of all processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from memory import watched
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
COHORT, IMAGES, TEST_IMAGES, CLASSES = 100, 2, 100, 10


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000, 20_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| registered | until the first round, s | s a round | MB driver | MB in all |")
    print("|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for clients in arguments.clients:
            images, out = Path(folder) / f"images-{clients}", Path(folder) / f"run-{clients}"
            draw_images(images, clients)
            command = [sys.executable, str(ROOT / "simulate.py"), "--clients", str(clients)]
            command += ["--fraction", str(COHORT / clients), "--rounds", str(arguments.rounds)]
            command += ["--dataset", str(images), "--partition", "iid", "--out", str(out)]
            command += ["--set", f"encryption.key_file={Path(folder) / 'owner.key'}"]
            watch = watched(command, ROOT)
            result = json.loads((out / "result.json").read_text())
            lines = (out / "rounds.jsonl").read_text().splitlines()
            seconds = statistics.median(json.loads(line)["seconds"] for line in lines[1:])
            cells = [clients, f"{result['seconds']['setup']:.1f}", f"{seconds:.2f}"]
            cells += [f"{watch.root / 1e6:.0f}", f"{watch.total / 1e6:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def draw_images(folder: Path, clients: int) -> None:
    """Writes images of noise into folders by split and class."""
    random = np.random.default_rng(0)
    for split, count in (("train", IMAGES * clients), ("test", TEST_IMAGES)):
        pixels = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            place = folder / split / f"{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number}.png", compress_level=0)


if __name__ == "__main__":
    main()
