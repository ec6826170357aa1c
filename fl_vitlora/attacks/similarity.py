"""Measures of the similarity of two images: structural similarity, and the mean pixel error.

Letters in shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WHITE = 255.0
WINDOW, SPREAD = 11, 1.5  # side and standard deviation of the Gaussian window, in pixels
C1, C2 = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Returns the mean structural similarity (SSIM) of pairs of images.

    With the means m, the variances v and the covariance c of two images within a window,

        SSIM = (2·m₁·m₂ + C₁)·(2·c + C₂) / ((m₁² + m₂² + C₁)·(v₁ + v₂ + C₂)).

    The result is averaged over all windows that lie within the image, and over the channels.

    Source: Wang et al., IEEE Transactions on Image Processing 13 (2004). Window and constants are
    those of the paper. If an image is smaller than the window, the window has the side of the
    image's smaller side.

    Args:
        first: Images with values from 0 to 255, (B, C, H, W).
        second: The same number of images, of the same shape.

    Returns:
        The similarity of each pair, float64 (B,). A similarity is at most 1, and 1 for equal
        images.

    Example:
        >>> image = torch.arange(256).view(1, 1, 16, 16)
        >>> structural_similarity(image, image).tolist()
        [1.0]
        >>> structural_similarity(image, 255 - image).item() < 0
        True
    """
    x, y = first.double(), second.double()
    weights = _window(min(WINDOW, *x.shape[-2:]))
    mean_x, mean_y = _blurred(x, weights), _blurred(y, weights)
    variance_x = _blurred(x * x, weights) - mean_x**2
    variance_y = _blurred(y * y, weights) - mean_y**2
    covariance = _blurred(x * y, weights) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return (brightness * structure).flatten(1).mean(dim=1)


def mean_error(first: Tensor, second: Tensor) -> Tensor:
    """Returns the mean absolute difference of the pixels of pairs of images, float64 (B,).

    Args:
        first: Images, (B, C, H, W).
        second: The same number of images, of the same shape.
    """
    return (first.double() - second.double()).abs().flatten(1).mean(dim=1)


def _window(side: int) -> Tensor:
    """Returns a Gaussian window of a given side. The weights of the window add up to 1."""
    places = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    weights = torch.exp(-(places**2) / (2 * SPREAD**2))
    return torch.outer(weights, weights) / weights.sum() ** 2


def _blurred(images: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted means of images within all windows, (B, C, H', W')."""
    channels = images.shape[1]
    kernels = weights.expand(channels, 1, *weights.shape)
    return F.conv2d(images, kernels, groups=channels)
