"""Measures how much time and memory an owner needs to encrypt its images.

The images are made up: JPEG files of 256 × 256 pixels with smooth colours and noise. They are
encrypted with `fl-vitlora encrypt` to 224 × 224 pixels in a process of its own.

    python benchmarks/owner_encryption.py --images 10000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CLASSES = 256, 10
CODE = "import sys; from fl_vitlora.command_line.tools import main; main(sys.argv[1:])"


def make_images(folder: Path, images: int) -> int:
    """Makes JPEG files in folders of classes, and returns their bytes."""
    draw, size = np.random.default_rng(0), 0
    for number in range(images):
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noise = draw.normal(0, 6, (SIDE, SIDE, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        path = folder / f"class {number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        size += path.stat().st_size
    return size


def main() -> None:
    """Prints the time and the memory of a first call, and of a second call that finds the shard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_images(folder / "own", images)
        print(f"{images:,} JPEG files of {SIDE} x {SIDE} pixels, {size / 1e6:.0f} MB")
        words = ["encrypt", str(folder / "own"), str(folder / "out"), "--image-size", "224"]
        words += ["--patch-size", "16", "--key", str(folder / "own.key")]
        time.sleep(2)  # files that were changed just now cannot be recognised again
        for what in ("first call", "second call"):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", CODE, *words], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{what}: {time.perf_counter() - start:.1f} s, {busy:.1f} s of processor time, at "
                f"most {after.ru_maxrss / 1e3:.0f} MB of memory in any call so far"
            )


if __name__ == "__main__":
    main()
