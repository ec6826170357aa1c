"""An attack on images that have a key each: labels are read from a single ciphertext.

The order of pixels and blocks does not change the grey levels of an image, the moments of its
blocks, their distances, or the singular values of its matrix of blocks. So the ciphertext keeps
these features of the plain image, and an ordinary classifier can read labels from them.

n images, N blocks, D entries of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.attacks.key_search.block_statistics import Matrix
from fl_vitlora.encryption.image_blocks import to_blocks

LEVELS = 25  # bins of a histogram; odd, so that no boundary is at zero
DIGITS = 9  # decimals that are significant; later ones are rounding errors
QUANTILES = 20
WHITE = 255


def mask_of(image: Tensor, block_size: int) -> Tensor:
    """Guesses the negative-positive mask of the ciphertext of an image with a dark background.

    The block whose values are closest to 0 or 255 is assumed to be background. The bright entries
    of this block are the inverted ones.

    Args:
        image: Ciphertext, uint8 (C, H, W).
        block_size: Block size p.

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
    """Returns features that the order of pixels and blocks does not change.

    The guessed negative-positive mask is removed first.

    Args:
        image: Ciphertext, uint8 (C, H, W).
        block_size: Block size p.

    Returns:
        The features as a vector, whose length depends only on N and D.
    """
    blocks = to_blocks(image[None], block_size)[0]
    plain = (blocks ^ (mask_of(image, block_size) * WHITE).to(torch.uint8)).double().numpy() / WHITE
    of_rows, of_columns = plain - plain.mean(axis=1, keepdims=True), plain - plain.mean(axis=0)
    both = of_rows - of_rows.mean(axis=0)
    return np.concatenate(
        [
            *(
                np.linalg.svd(matrix, compute_uv=False)
                for matrix in (plain, of_rows, of_columns, both)
            ),
            *(_histogram(matrix) for matrix in (plain, of_rows, of_columns)),
            _moments_in_order(plain),
            _moments_in_order(plain.T),
            _distances(plain),
            _distances(plain.T),
        ]
    )


def _histogram(matrix: Matrix) -> Matrix:
    """Returns the share of values in each bin of a histogram."""
    return np.histogram(matrix.round(DIGITS), bins=LEVELS, range=(-1, 1))[0] / matrix.size


def _moments_in_order(rows: Matrix) -> Matrix:
    """Returns mean, deviation, third moment and extremes of the rows, sorted by the mean."""
    mean = rows.mean(axis=1)
    skew = ((rows - mean[:, None]) ** 3).mean(axis=1)
    moments = np.stack([mean, rows.std(axis=1), skew, rows.min(axis=1), rows.max(axis=1)])
    return moments[:, np.lexsort(moments[::-1].round(DIGITS))].reshape(-1)


def _distances(rows: Matrix) -> Matrix:
    """Returns quantiles of the distances between all pairs of rows."""
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    found: Matrix = np.quantile(apart[np.triu_indices(len(rows), 1)], np.linspace(0, 1, QUANTILES))
    return found


def table_of_features(images: Tensor, block_size: int) -> Matrix:
    """Returns the features of images (n, C, H, W), one row for each image."""
    return np.stack([features(image, block_size) for image in images])
