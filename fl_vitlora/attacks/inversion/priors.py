"""Priors about images: neighbouring pixels, and pixels at the borders of patches, are similar.

The two priors hold for plain images. A cipher that permutes blocks and pixels breaks both priors.

Letters in shapes: B images, C channels, H × W pixels, p patch size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbouring pixels, a number.

    Args:
        images: The images, (B, C, H, W).

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor(1.)
    """
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down


def seams(images: Tensor, patch_size: int) -> Tensor:
    """Returns the mean square of the steps at the borders of patches, a number.

    The result is the patch prior of GradViT. The result is 0 if an image has only one patch.

    Args:
        images: The images, (B, C, H, W).
        patch_size: The side p of a patch in pixels.

    Example:
        >>> seams(torch.tensor([[[[0.0, 0.0, 2.0, 2.0]]]]), 2)
        tensor(4.)
    """
    height, width = images.shape[-2:]
    rows = torch.arange(patch_size, max(height, patch_size), patch_size)
    columns = torch.arange(patch_size, max(width, patch_size), patch_size)
    steps = [
        (images[..., rows, :] - images[..., rows - 1, :]).flatten(),
        (images[..., columns] - images[..., columns - 1]).flatten(),
    ]
    both = torch.cat(steps)
    return both.square().mean() if len(both) else both.sum()
