"""Draws the images that attacks recovered from a run, each beside the image that it should be.

The pictures show plain images of the owners. They are written only if a user asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.attacks.results import Outcome
from fl_vitlora.reporting.plots import write_plot
from fl_vitlora.storage.files import PRIVATE, make_private_folder

FOLDER = "attack_pictures"
Pixels = NDArray[np.generic]
SIDE = 1.1  # inches of an image


def picture_name(outcome: Outcome) -> str:
    """Returns the name of the file of an outcome, without its ending.

    Example:
        >>> picture_name(Outcome(attack="my.attacks:Mine", adversary="informed server"))
        'my.attacks.Mine-informed-server'
    """
    return f"{outcome.attack.replace(':', '.')}-{outcome.adversary.replace(' ', '-')}"


def draw_pictures(run: Path, outcome: Outcome) -> str | None:
    """Draws the images that an attack recovered, one row for each image.

    Args:
        run: The run folder.
        outcome: The outcome of the attack.

    Returns:
        The path of the picture within the run folder; None if the attack recovers no images.
    """
    columns = {name: list(_shown(images)) for name, images in outcome.pictures.items()}
    rows = min(map(len, columns.values()), default=0)
    if not rows:
        return None
    figure = Figure(figsize=(SIDE * len(columns) + 0.4, SIDE * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize="small")
        for row in range(rows):
            axes[row, column].imshow(images[row], vmin=0, vmax=255, cmap="gray")
            axes[row, column].set_axis_off()
    figure.suptitle(f"{outcome.attack}, {outcome.adversary}", fontsize="small")
    make_private_folder(run / FOLDER)
    path = write_plot(figure, run / FOLDER, picture_name(outcome), "png", PRIVATE)
    return path.relative_to(run).as_posix()


def _shown(images: Tensor) -> Iterator[Pixels]:
    """Yields images as arrays, (H, W, 3), or (H, W) if they do not have three channels."""
    for values in images.double().round().clamp(0, 255).byte().numpy():
        yield values.transpose(1, 2, 0) if len(values) == 3 else values.mean(axis=0)
