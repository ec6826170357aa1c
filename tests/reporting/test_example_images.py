"""The picture of plain images above their ciphertext."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fl_vitlora.reporting.example_images import plot_examples

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
OTHERS = [(255, 255, 0), (0, 255, 255), (255, 0, 255)]


def squares(colours: list[tuple[int, int, int]], side: int) -> Tensor:
    found = [torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1) for colour in colours]
    return torch.stack([one.expand(3, side, side) for one in found])


def place(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Returns the middle of all pixels of a colour, as (row, column)."""
    rows, columns = np.nonzero((pixels == np.array(colour)).all(axis=-1))
    assert len(rows) > 100
    return float(rows.mean()), float(columns.mean())


@pytest.mark.parametrize("side", [16, 224])
def test_each_plain_image_is_above_its_ciphertext(side: int, tmp_path: Path) -> None:
    names = ["cat", "$dog$", "a long name of a class"]
    path = plot_examples(tmp_path, squares(COLOURS, side), squares(OTHERS, side), names)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    above = [place(pixels, colour) for colour in COLOURS]
    below = [place(pixels, colour) for colour in OTHERS]
    assert [column for _, column in above] == sorted(column for _, column in above)
    for (row, column), (under, other) in zip(above, below, strict=True):
        assert row < under
        assert abs(column - other) < 2
    shown = (pixels == np.array(COLOURS[0])).all(axis=-1)
    assert np.count_nonzero(shown.any(axis=0)) >= side  # no pixel is left out
    assert np.count_nonzero(shown.any(axis=1)) >= side


def test_only_the_owner_of_the_file_can_read_it(tmp_path: Path) -> None:
    grey = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    path = plot_examples(tmp_path, grey, grey, ["a", "b"], "not encrypted")
    assert path.stat().st_mode & 0o777 == 0o600
