"""Folders of images of different owners, and the program with which they encrypt them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fl_vitlora.command_line import tools
from fl_vitlora.data.identity import SETTLED

CLASSES = ("cat", "dog", "hen")


def make_folder(
    folder: Path, *, seed: int, classes: Sequence[str] = CLASSES, each: int = 4, splits: bool = True
) -> Path:
    """Makes a folder of images: two splits of some classes, with a different brightness each."""
    draw = np.random.default_rng(seed)
    for split in ("train", "test") if splits else ("",):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for image in range(each if split != "test" else each // 2):
                low = 80 * number
                pixels = draw.integers(low, low + 90, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"photo {image}.png")
    return folder


def settle() -> None:
    """Waits until files that were just made count as unchanged."""
    time.sleep(SETTLED + 0.1)


def program(*words: object) -> None:
    """Runs the program `fl-vitlora` in this process."""
    tools.main([str(word) for word in words])


def resized(path: Path, side: int = 16) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Reads an image as the program does, without its code."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
