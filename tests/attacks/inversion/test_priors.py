"""Smooth images have small priors, and only seams count in the patch prior."""

from __future__ import annotations

import torch

from fl_vitlora.attacks.inversion.priors import seams, total_variation


def test_a_flat_image_has_no_variation_and_no_seams():
    flat = torch.ones(1, 3, 8, 8)
    assert total_variation(flat) == seams(flat, 4) == 0


def test_steps_within_patches_are_no_seams():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 1:3, 1:3] = 1
    assert seams(image, 4) == 0
    assert total_variation(image) > 0


def test_a_single_patch_has_no_seams():
    assert seams(torch.rand(1, 1, 4, 4), 4) == 0
