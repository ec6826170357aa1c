"""Computes the singular vectors of a matrix, and the rank that keeps a matrix up to an error."""

from __future__ import annotations

import torch
from torch import Tensor


def leading_directions(rows: Tensor) -> Tensor:
    """Returns the right singular vectors of a matrix, in descending order of the singular values.

    The entry of each vector with the largest magnitude is positive, so that all machines compute
    the same vectors.

    Args:
        rows: The matrix, (..., r, n) with r ≤ n.

    Returns:
        The singular vectors as orthonormal rows, (..., r, n).

    Example:
        >>> leading_directions(torch.tensor([[0.0, -2.0, 0.0], [1.0, 0.0, 0.0]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    vectors = torch.linalg.svd(rows.detach().double(), full_matrices=False).Vh
    largest = vectors.gather(-1, vectors.abs().argmax(dim=-1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors).to(rows.dtype) + 0.0


def smallest_rank(matrix: Tensor, error: float) -> int:
    """Returns the smallest rank r with ‖G - G_r‖ ≤ ξ·‖G‖, where G_r is the best matrix of rank r.

    Args:
        matrix: The matrix G.
        error: The relative error ξ in the Frobenius norm, in [0, 1).

    Returns:
        The rank r, which is at least 1.

    Example:
        >>> [smallest_rank(torch.diag(torch.tensor([4.0, 3.0, 0.1])), xi) for xi in (0.0, 0.1, 0.7)]
        [3, 2, 1]
    """
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    tails = squares.flip(0).cumsum(0).flip(0)  # tails[r] is the squared error of rank r
    return max(1, int((tails > error**2 * tails[0]).sum()))
