"""Features of a ciphertext that hardly any key changes, and that describe the plain image.

The order of pixels and blocks does not change the levels of an image, the moments of its blocks and
of its entries, the distances between blocks and between entries, or the singular values of its
matrix of blocks. Entries that are bright in the most extreme block (the background of a drawing)
are inverted, which makes this block dark. So no key of block scrambling, pixel shuffling and the
negative-positive transformation changes any of these features.

Letters in shapes: n images, N blocks, D entries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.attacks.key_search.block_statistics import Matrix
from fl_vitlora.encryption.image_blocks import to_blocks

LEVELS = 25  # bins of a histogram; the number is odd, so that no boundary is at zero
DIGITS = 6  # significant decimals; the others are rounding errors
QUANTILES = 20
WHITE = 255
AT_ONCE = 16  # images whose features are computed together


def masks_of(images: Tensor, block_size: int) -> Tensor:
    """Guesses the negative-positive mask of each image, if the images have a dark background.

    The block whose values are closest to 0 or 255 is assumed to be background. The bright entries
    of this block are assumed to be inverted.

    Args:
        images: Ciphertext, uint8 (n, C, H, W).
        block_size: Block size p.

    Returns:
        The masks, bool (n, D).

    Example:
        >>> background = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> masks_of(background, 2)
        tensor([[False,  True,  True, False]])
    """
    blocks = to_blocks(images, block_size).double()
    from_extreme = torch.minimum(blocks, WHITE - blocks).sum(dim=2)
    background = blocks[torch.arange(len(blocks)), from_extreme.argmin(dim=1)]
    return background > WHITE / 2


def features(images: Tensor, block_size: int) -> Matrix:
    """Returns the features of images, one row for each image.

    Args:
        images: Ciphertext, uint8 (n, C, H, W).
        block_size: Block size p.

    Returns:
        The features, (n, F). The number F of features depends only on N and D.
    """
    found = [_features(some, block_size) for some in torch.split(images, AT_ONCE)]
    table: Matrix = torch.cat(found).numpy()
    return table


def _features(images: Tensor, block_size: int) -> Tensor:
    turned = (masks_of(images, block_size) * WHITE).to(torch.uint8)
    plain = (to_blocks(images, block_size) ^ turned[:, None]).double() / WHITE
    of_rows = plain - plain.mean(dim=2, keepdim=True)
    of_columns = plain - plain.mean(dim=1, keepdim=True)
    both = of_rows - of_rows.mean(dim=1, keepdim=True)
    found = [
        *(torch.linalg.svdvals(matrix) for matrix in (plain, of_rows, of_columns, both)),
        *(_histogram(matrix) for matrix in (plain, of_rows, of_columns)),
        *(_moments(rows) for rows in (plain, plain.mT)),
        *(_distances(rows) for rows in (plain, plain.mT)),
    ]
    return torch.cat(found, dim=1).round(decimals=DIGITS)


def _histogram(matrices: Tensor) -> Tensor:
    """Returns the share of values from -1 to 1 in each bin of a histogram, (n, LEVELS)."""
    values = matrices.flatten(1).round(decimals=DIGITS)
    bins = ((values + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)
    counts = torch.zeros(len(bins), LEVELS, dtype=torch.float64)
    return counts.scatter_add(1, bins, torch.ones_like(values)) / values.shape[1]


def _moments(rows: Tensor) -> Tensor:
    """Returns mean, deviation, third moment and extremes of rows that are sorted by their means."""
    mean = rows.mean(dim=2)
    skew = ((rows - mean[..., None]) ** 3).mean(dim=2)
    spread = rows.std(dim=2, correction=0)
    moments = torch.stack([mean, spread, skew, rows.amin(dim=2), rows.amax(dim=2)], dim=1)
    order = (mean + 1e-5 * spread + 1e-8 * skew).argsort(dim=1)  # the last terms order equal means
    return moments.gather(2, order[:, None].expand_as(moments)).flatten(1)


def _distances(rows: Tensor) -> Tensor:
    """Returns, for each of n images, quantiles of distances between its rows, (n, QUANTILES)."""
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    first, second = torch.triu_indices(rows.shape[1], rows.shape[1], offset=1)
    at = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    return torch.quantile(apart[:, first, second], at, dim=1).T
