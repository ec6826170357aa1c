"""Structural similarity is 1 for equal images, and follows the published formula."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.attacks.inversion.similarity import C1, C2, WINDOW, mean_error, ssim


def images(number: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, 11, 9, generator=draw, dtype=torch.float64) * 255


def slow_ssim(image: Tensor, other: Tensor) -> float:
    """The formula, window by window, with the unbiased variance of PyTorch."""
    found = []
    for channel in range(len(image)):
        for y in range(image.shape[1] - WINDOW + 1):
            for x in range(image.shape[2] - WINDOW + 1):
                place = (channel, slice(y, y + WINDOW), slice(x, x + WINDOW))
                a, b = image[place].flatten(), other[place].flatten()
                cov = torch.cov(torch.stack([a, b]))
                means = (2 * a.mean() * b.mean() + C1) / (a.mean() ** 2 + b.mean() ** 2 + C1)
                found.append(float(means * (2 * cov[0, 1] + C2) / (cov.trace() + C2)))
    return sum(found) / len(found)


def test_equal_images_have_the_similarity_1_and_inverted_ones_a_negative_one():
    some = images(2)
    assert torch.allclose(ssim(some, some), torch.ones(2, dtype=torch.float64))
    assert (ssim(some, 255 - some) < 0).all()


def test_the_similarity_is_that_of_the_formula():
    some, others = images(2), images(2, seed=1) * 0.5 + images(2) * 0.5
    slow = [slow_ssim(a, b) for a, b in zip(some, others, strict=True)]
    assert torch.allclose(ssim(some, others), torch.tensor(slow, dtype=torch.float64))


def test_the_similarity_is_symmetric_and_falls_with_noise():
    some, noise = images(1), images(1, seed=2) - 127.5
    near, far = ((some + share * noise).clamp(0, 255) for share in (0.1, 0.5))
    assert float(ssim(some, near)) > float(ssim(some, far)) > 0
    assert torch.allclose(ssim(some, near), ssim(near, some))


def test_the_mean_error_is_in_grey_levels():
    some = torch.zeros(2, 1, 8, 8)
    assert mean_error(some, some + torch.tensor([3.0, 0.0]).reshape(2, 1, 1, 1)).tolist() == [3, 0]
