"""Structural similarity (SSIM): how alike two images are.

    SSIM = (2·μ_a·μ_b + c₁)·(2·σ_ab + c₂) / ((μ_a² + μ_b² + c₁)·(σ_a² + σ_b² + c₂))

The means μ, variances σ² and covariances σ_ab are those of a window of 7 × 7 pixels, and the result
is the mean over all windows that lie within the image, and over all channels. For pixels in [0,
255], c₁ = (0.01·255)² and c₂ = (0.03·255)².

Source: Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 2004, with the
uniform window that scikit-image has by default.

B images, C channels, H × W pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

WINDOW = 7  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Returns the structural similarity of pairs of images.

    Args:
        images: The images, (B, C, H, W), with pixels in [0, 255]. H and W are at least 7.
        others: The images with which they are compared, (B, C, H, W).

    Returns:
        The similarities, float64 (B,). Equal images have the similarity 1.

    Example:
        >>> import torch
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> ssim(image, image).item()
        1.0
    """
    a, b = images.double(), others.double()
    mean_a, mean_b = _mean(a), _mean(b)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_a = unbiased * (_mean(a * a) - mean_a**2)
    var_b = unbiased * (_mean(b * b) - mean_b**2)
    both = unbiased * (_mean(a * b) - mean_a * mean_b)
    up = (2 * mean_a * mean_b + C1) * (2 * both + C2)
    down = (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    return (up / down).flatten(1).mean(dim=1)


def mean_error(images: Tensor, others: Tensor) -> Tensor:
    """Returns the mean absolute difference of the pixels of pairs of images, float64 (B,)."""
    return (images.double() - others.double()).abs().flatten(1).mean(dim=1)


def _mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, WINDOW, stride=1)
