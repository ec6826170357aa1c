"""Second-order statistics of the entries of a block; a shared key changes only order and signs.

A key with the signs s and the order k encrypts every block x to x' = s · x[k]. The correlations of
the ciphertext are then R'[i, j] = sᵢ·sⱼ·R[kᵢ, kⱼ]. So the signs
follow from R' alone, except for one common sign. The order follows from comparing R' without signs
with the correlations R of other images of the same kind.

Letters in shapes: D entries of a block, G groups of entries, M samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
EQUAL = 0.9999  # two entries with at least this correlation are regarded as equal


def correlations(samples: Matrix, *, centred: bool = True) -> Matrix:
    """Returns the correlations of the columns of samples.

    Args:
        samples: Samples, (M, D).
        centred: True if the mean of each column is subtracted first.

    Returns:
        The correlation matrix R, (D, D), with ones on the diagonal. A constant column has
        correlation 0 with all other columns.
    """
    columns = samples - samples.mean(axis=0) if centred else samples
    lengths = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(lengths > 0, lengths, 1)
    found: Matrix = scaled.T @ scaled
    np.fill_diagonal(found, 1.0)
    return found


def signs(correlation: Matrix) -> Indices:
    """Finds the sign of each entry, except for one common sign.

    Neighbouring pixels of plain images have a positive correlation. So the method follows the
    strongest correlations from entry to entry (a maximum spanning tree of |R'|). If a correlation
    is negative, the next entry has the opposite sign. Only neighbours need to be correlated.
    If all pixels are correlated, the leading eigenvector of R' gives the same signs.

    Args:
        correlation: Correlation matrix R' of the ciphertext, (D, D).

    Returns:
        +1 or -1 for each entry; the larger group has +1.

    Example:
        >>> signs(np.array([[1.0, -0.9, 0.2], [-0.9, 1.0, -0.1], [0.2, -0.1, 1.0]])).tolist()
        [1, -1, 1]
    """
    strength = np.abs(correlation)
    found = np.zeros(len(strength), dtype=np.int64)
    found[0] = 1
    link, nearest = strength[0].copy(), np.zeros(len(strength), dtype=np.int64)
    for _ in range(len(strength) - 1):
        entry = int(np.argmax(np.where(found == 0, link, -1.0)))
        before = nearest[entry]
        found[entry] = found[before] * (1 if correlation[before, entry] >= 0 else -1)
        closer = strength[entry] > link
        link, nearest = np.where(closer, strength[entry], link), np.where(closer, entry, nearest)
    return found if found.sum() >= 0 else -found


def equal_entries(correlation: Matrix) -> list[Indices]:
    """Groups the entries that always have equal values, such as the channels of grey images.

    Args:
        correlation: Correlation matrix R of plain images, (D, D).

    Returns:
        G groups that together have all entries, sorted by their first entry.

    Example:
        >>> R = np.array([[1.0, 0.2, 1.0], [0.2, 1.0, 0.2], [1.0, 0.2, 1.0]])
        >>> [group.tolist() for group in equal_entries(R)]
        [[0, 2], [1]]
    """
    left, groups = np.ones(len(correlation), dtype=bool), []
    for entry in range(len(correlation)):
        if left[entry]:
            group = np.flatnonzero(left & (correlation[entry] > EQUAL))
            left[group] = False
            groups.append(group)
    return groups


def nearest_entries(correlation: Matrix, sizes: Sequence[int]) -> list[Indices]:
    """Groups entries by their correlation into groups of known sizes.

    Each group consists of the first entry that is still free, and the free entries with the largest
    correlation to this entry.

    Args:
        correlation: Correlation matrix without signs, (D, D).
        sizes: Sizes of the groups; their sum is D.

    Returns:
        The groups; the entries of each group are sorted.

    Example:
        >>> R = np.array([[1.0, 0.2, 0.8], [0.2, 1.0, 0.2], [0.8, 0.2, 1.0]])
        >>> [group.tolist() for group in nearest_entries(R, [2, 1])]
        [[0, 2], [1]]
    """
    left, groups = set(range(len(correlation))), []
    for size in sizes:
        entry = min(left)
        others = sorted(left - {entry}, key=lambda other: -correlation[entry, other])
        group = [entry, *others[: size - 1]]
        groups.append(np.array(sorted(group)))
        left -= set(group)
    return groups
