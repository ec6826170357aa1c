"""Guesses are paired with the images that they resemble most, and no image is used twice."""

from __future__ import annotations

import torch

from fl_vitlora.attacks.inversion.comparison import likeness, of_same_classes

IMAGES = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(0)) * 255


def test_the_order_of_guesses_does_not_matter():
    assert likeness(IMAGES[[2, 0]], IMAGES) == likeness(IMAGES[[0, 2]], IMAGES) == (1, 0)


def test_one_image_guessed_twice_is_right_once():
    similarity, error = likeness(IMAGES[[1, 1]], IMAGES[:2])
    assert similarity < 0.75
    assert error > 20


def test_other_images_have_the_given_classes_where_there_are_some():
    labels = torch.tensor([3, 5, 3, 5])
    for number in range(4):
        chosen = of_same_classes(torch.tensor([5, 5, 3]), IMAGES, labels, number)
        assert torch.equal(
            chosen[:2].flatten(1).unique(dim=0), IMAGES[[1, 3]].flatten(1).unique(dim=0)
        )
        assert any(torch.equal(chosen[2], IMAGES[place]) for place in (0, 2))
    unknown = of_same_classes(torch.tensor([7]), IMAGES, labels[:0], 2)
    assert torch.equal(unknown, IMAGES[2:3])
