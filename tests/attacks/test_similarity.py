"""Similarities of images: 1 for equal images, small for others, and the formula's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fl_vitlora.attacks.similarity import (
    C1,
    C2,
    SPREAD,
    mean_error,
    structural_similarity,
)


def test_equal_images_are_alike_and_noise_is_not(images: Tensor):
    assert torch.allclose(structural_similarity(images, images), torch.ones(5).double())
    others = structural_similarity(images, images.flip(0))
    assert (others[[0, 1, 3, 4]].abs() < 0.2).all()
    assert torch.allclose(others, structural_similarity(images.flip(0), images))


def test_a_darker_image_is_less_alike_and_an_inverted_one_is_opposite(images: Tensor):
    darker = structural_similarity(images, images * 0.5)
    assert ((darker > 0.4) & (darker < 1)).all()
    assert (structural_similarity(images, 255 - images) < 0).all()


@pytest.mark.parametrize("side", [5, 11])
def test_one_window_gives_the_formula_as_loops_compute_it(side: int):
    draw = torch.Generator().manual_seed(side)
    x, y = (torch.rand(side, side, generator=draw).double() * 255 for _ in range(2))
    weight = {
        (i, j): math.exp(-((i - (side - 1) / 2) ** 2 + (j - (side - 1) / 2) ** 2) / (2 * SPREAD**2))
        for i in range(side)
        for j in range(side)
    }
    total = sum(weight.values())

    def mean(values: Tensor) -> float:
        return sum(w * float(values[place]) for place, w in weight.items()) / total

    mx, my = mean(x), mean(y)
    vx, vy, c = mean((x - mx) ** 2), mean((y - my) ** 2), mean((x - mx) * (y - my))
    expected = (2 * mx * my + C1) * (2 * c + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))
    found = structural_similarity(x.view(1, 1, side, side), y.view(1, 1, side, side))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_an_image_without_a_whole_window_has_one_window_of_its_smaller_side():
    """With its smaller side of 5, an image of 5 x 9 pixels has 5 windows of 5 x 5 pixels."""
    draw = torch.Generator().manual_seed(3)
    x, y = (torch.rand(1, 1, 5, 9, generator=draw).double() * 255 for _ in range(2))
    parts = [structural_similarity(x[..., k : k + 5], y[..., k : k + 5]) for k in range(5)]
    assert torch.allclose(structural_similarity(x, y), torch.stack(parts).mean(dim=0))


def test_the_mean_error_is_in_grey_levels():
    some = torch.zeros(2, 1, 8, 8)
    assert mean_error(some, some + torch.tensor([3.0, 0.0]).reshape(2, 1, 1, 1)).tolist() == [3, 0]
