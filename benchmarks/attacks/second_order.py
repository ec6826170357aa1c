"""Second-order statistics of the entries of a block, which a shared key only permutes and signs.

With x' = s · x[k] for every block, the correlations are R'[i, j] = sᵢ·sⱼ·R[kᵢ, kⱼ]. So the signs
follow from R' alone, up to one for all, and the order from comparing R' without them with the R of
other images of the same kind.

D entries a block, G groups of entries, M samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
EQUAL = 0.9999  # correlation from which two entries are taken for one


def correlations(samples: Matrix, *, centred: bool = True) -> Matrix:
    """Computes how the columns of samples correlate.

    Args:
        samples: (M, D).
        centred: Whether each column's mean is taken off first.

    Returns:
        R, (D, D), with ones on the diagonal. A column that never changes correlates with none.
    """
    columns = samples - samples.mean(axis=0) if centred else samples
    lengths = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(lengths > 0, lengths, 1)
    found: Matrix = scaled.T @ scaled
    np.fill_diagonal(found, 1.0)
    return found


def signs(correlation: Matrix) -> Indices:
    """Finds the sign of each entry, up to one for all of them.

    Neighbouring pixels of plain images correlate positively. So the strongest correlations are
    followed from entry to entry (a maximum spanning tree of |R'|), and an entry has the other sign
    than the one before it where the correlation is negative. This needs only neighbours to
    correlate; the leading eigenvector of R' gives the same where all pixels do.

    Args:
        correlation: R', (D, D).

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
    """Groups the entries that always have equal values, as the three channels of grey images do.

    Args:
        correlation: R of plain images, (D, D).

    Returns:
        G groups, together all entries, each ordered by its first entry.

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
    """Groups entries into groups of known sizes: each entry that is left with those nearest to it.

    Args:
        correlation: (D, D), with the signs taken off.
        sizes: Sizes of the groups, D together.

    Returns:
        The groups, each ordered.

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
