"""The picture of the README: plain and encrypted digits, and accuracy over the megabytes sent.

The curves come from the four runs of a comparison: LoRA with the patch embedding and full
fine-tuning, each on plain and on encrypted images, with the settings of the default job. Runs that
the folder does not have yet are made first.

python -m benchmarks.picture --out docs/picture.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.data.sources import load
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.reporting.example_images import draw_row

ROOT = Path(__file__).resolve().parent.parent
SIDE, BLOCK, SHOWN = 16, 4, 5  # pixels of an image and of a block; digits in a row
SECRET = bytes(range(32))  # of the images that are shown, so that the picture can be drawn again
METHODS = {"lora+patch_embed": "LoRA + patch embedding", "full": "full fine-tuning"}
IMAGES = {"[]": ("plain", "--"), "ViT-blockwise": ("encrypted", "-")}
AXES = [f"finetuning.method={','.join(METHODS)}", f"encryption.steps={','.join(IMAGES)}"]


def digits() -> tuple[Tensor, Tensor]:
    """Returns one test image of each of the first digits, plain and encrypted.

    Returns:
        Two uint8 tensors of shape (images, 3, height, width).
    """
    _, test = load(Config().data)
    first = [int((test.labels == label).nonzero()[0][0]) for label in range(SHOWN)]
    plain = test.read(torch.tensor(first).numpy(), SIDE, SIDE)
    steps = Config().encryption.steps
    cipher = Cipher(steps=steps, block_size=BLOCK, image_shape=(3, SIDE, SIDE))
    return plain, cipher.encrypt(plain, cipher.key(SECRET, "picture"))


def make_runs(folder: Path) -> None:
    """Makes the runs of the comparison that the folder does not hold yet."""
    command = [sys.executable, "simulate.py", "--compare", *AXES, "--seeds", "0"]
    subprocess.run([*command, "--out", str(folder.resolve())], cwd=ROOT, check=True)


def curve(run: Path) -> tuple[list[float], list[float]]:
    """Reads the megabytes sent until the end of each round, and the test accuracy after it.

    Args:
        run: The folder of a run.

    Returns:
        Megabytes in both directions together, and accuracies in percent.
    """
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    sent = itertools.accumulate(line["uplink_bytes"] + line["downlink_bytes"] for line in lines)
    return [total / 1e6 for total in sent], [100 * line["accuracy"] for line in lines]


def draw_titled(axes: Axes, images: Tensor, title: str) -> None:
    """Draws images beside each other, with a title above."""
    draw_row(axes, images)
    axes.set_title(title, fontsize=10)


def draw_curves(axes: Axes, folder: Path) -> None:
    """Draws one curve for each run of the comparison."""
    for run in sorted(folder.glob("*/result.json"), reverse=True):
        result = json.loads(run.read_text())
        steps = "ViT-blockwise" if result["encryption"]["steps"] else "[]"
        (images, dashes), method = IMAGES[steps], METHODS[result["method"]]
        colour = f"C{list(METHODS).index(result['method'])}"
        axes.plot(*curve(run.parent), dashes, color=colour, label=f"{method}, {images}")
    axes.set(xlabel="megabytes sent, both directions", ylabel="test accuracy (%)", xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")


def main() -> None:
    """Makes the runs that are missing, and draws the picture."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/picture.png"))
    parser.add_argument("--runs", type=Path, default=Path("runs/picture"))
    given = parser.parse_args()
    make_runs(given.runs)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(2, 3))
    plain, cipher = digits()
    draw_titled(figure.add_subplot(grid[0, 0]), plain, "what the owner sees")
    draw_titled(figure.add_subplot(grid[1, 0]), cipher, "what the clients train on")
    draw_curves(figure.add_subplot(grid[:, 1]), given.runs)
    figure.savefig(given.out, dpi=110)
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
