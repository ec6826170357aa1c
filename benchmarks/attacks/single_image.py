"""What can be read of images that have a key each: of one ciphertext without any other.

No order of pixels or blocks changes the levels of an image, the sums of its blocks, or the singular
values of its matrix of blocks. These are features of the plain image that stay in its ciphertext,
and an ordinary classifier reads labels from them.

n images, N blocks, D entries a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.attacks.second_order import Matrix
from fl_vitlora.encryption.blocks import to_blocks

LEVELS = 16  # of the histogram
WHITE = 255


def mask_of(image: Tensor, block_size: int) -> Tensor:
    """Guesses the negative-positive mask of one ciphertext of an image with a dark background.

    The block with the most values of 0 or 255 is taken for background: its bright entries are the
    inverted ones.

    Args:
        image: Ciphertext, uint8 (C, H, W).
        block_size: p.

    Returns:
        The mask, bool (D,).

    Example:
        >>> background = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).view(1, 2, 2)
        >>> mask_of(background, 2)
        tensor([False,  True,  True, False])
    """
    blocks = to_blocks(image[None], block_size)[0].float()
    from_extreme = torch.minimum(blocks, WHITE - blocks).sum(dim=1)
    return blocks[from_extreme.argmin()] > WHITE / 2


def features(image: Tensor, block_size: int) -> Matrix:
    """Computes what no order of pixels and blocks changes, with the guessed mask taken off.

    Args:
        image: Ciphertext, uint8 (C, H, W).
        block_size: p.

    Returns:
        A vector; its length depends on N and D alone.
    """
    blocks = to_blocks(image[None], block_size)[0]
    plain = (blocks ^ (mask_of(image, block_size) * WHITE).to(torch.uint8)).double().numpy() / WHITE
    centred = plain - plain.mean(axis=0)
    return np.concatenate(
        [
            np.histogram(plain, bins=LEVELS, range=(0, 1))[0] / plain.size,
            np.sort(plain.mean(axis=1)),
            np.sort(plain.std(axis=1)),
            np.sort(plain.mean(axis=0)),
            np.sort(plain.std(axis=0)),
            np.sort(np.linalg.norm(plain @ plain.T, axis=0)),
            np.linalg.svd(plain, compute_uv=False),
            np.linalg.svd(centred, compute_uv=False),
        ]
    )


def table_of_features(images: Tensor, block_size: int) -> Matrix:
    """Computes the features of images (n, C, H, W), one row for each."""
    return np.stack([features(image, block_size) for image in images])
