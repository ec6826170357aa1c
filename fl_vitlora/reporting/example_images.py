"""Draws plain images, and their ciphertext below them.

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fl_vitlora.reporting.plots import LONGEST_CLASS_NAME, literal, shorten
from fl_vitlora.reporting.run_folder import EXAMPLES
from fl_vitlora.storage.files import PRIVATE, write_atomically

DPI = 150
SIDE = 1.2  # the least width and height of an image in inches
GAP = 1  # white pixels around each image


def plot_examples(
    folder: Path, plain: Tensor, cipher: Tensor, names: Sequence[str], below: str = "encrypted"
) -> Path:
    """Draws plain images above their ciphertext, with the names of their classes.

    Only the current user can read the file, because it shows plain images.

    Args:
        folder: The folder for the picture.
        plain: The plain images, uint8 (n, C, H, W).
        cipher: The same images as clients train on them, of the same shape.
        names: The name of the class of each image.
        below: The word for the lower row.

    Returns:
        The file.
    """
    number, _, height, width = plain.shape
    wide, high = max(SIDE, width / DPI), max(SIDE, height / DPI)  # no pixel is left out
    figure = Figure(figsize=(number * wide + 0.6, 2 * high + 0.6), layout="constrained")
    for axes, images, word in zip(
        figure.subplots(2, 1), (plain, cipher), ("plain", below), strict=True
    ):
        centres = draw_row(axes, images)
        axes.set_ylabel(word)
        if word == "plain":
            shown = [literal(shorten(name, LONGEST_CLASS_NAME)) for name in names]
            axes.xaxis.tick_top()
            axes.set_xticks(centres, shown, fontsize="small")
            axes.tick_params(length=0)
    picture, path = io.BytesIO(), folder / EXAMPLES
    figure.savefig(picture, format="png", dpi=DPI)
    write_atomically(path, picture.getvalue(), mode=PRIVATE)
    return path


def draw_row(axes: Axes, images: Tensor) -> list[float]:
    """Draws images beside each other, without a frame.

    Args:
        axes: The place of the row.
        images: The images, uint8 (n, C, H, W), with one or three channels.

    Returns:
        The horizontal position of the middle of each image.
    """
    white = torch.nn.functional.pad(images, (GAP, GAP, GAP, GAP), value=255)
    row = torch.cat(list(white), dim=2).expand(3, -1, -1)
    axes.imshow(row.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    width = white.shape[-1]
    return [width * (place + 0.5) - 0.5 for place in range(len(images))]
