"""Matrices made of small cores: Kronecker products, and tensor rings, which are more general.

A size n is written as a product of small factors, n = n₁·n₂·n₃. An index i is then written as the
digits (i₁, i₂, i₃) in a number system with the bases n₁, n₂ and n₃. A tensor ring has a core Aᵈ of
shape (n_d, n_d, R, R) for each factor n_d, and represents the matrix

    T[i, j] = trace(A¹[i₁, j₁] · A²[i₂, j₂] · A³[i₃, j₃])

If R = 1, then T is the Kronecker product of the cores. The functions of this module do not compute
T, which has n² entries. Instead they multiply with the last core first, and then with all other
cores.

Source: Zhao et al., tensor ring decomposition, arXiv 1606.05535.

Letters in shapes: m rows of X, n columns of X, R ring rank.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fl_vitlora.errors import UserError

FACTORS = 3  # the usual number of factors of a size


def balanced_factors(size: int, count: int = FACTORS) -> tuple[int, ...]:
    """Returns the factors of a size with the smallest sum, which are nearly equal.

    Args:
        size: The number n that is written as a product.
        count: The largest number of factors.

    Returns:
        The factors in ascending order. Each factor is at least 2.

    Raises:
        UserError: If the size is a prime number, or smaller than 4.

    Example:
        >>> balanced_factors(96), balanced_factors(384), balanced_factors(768), balanced_factors(10)
        ((4, 4, 6), (6, 8, 8), (8, 8, 12), (2, 5))
    """
    found = _smallest_sum(size, count)
    if len(found) < 2:
        raise UserError(
            f"a layer with {size} inputs has no Kronecker factors, because {size} is not a product "
            "of smaller numbers; choose other finetuning.targets, or --method hta"
        )
    return found


def _smallest_sum(size: int, count: int) -> tuple[int, ...]:
    """Returns at most `count` factors of a size, in ascending order, with the smallest sum.

    If two lists of factors have the same sum, the longer list is returned: 2·2 for the size 4.
    """
    best: tuple[int, ...] = (size,)
    if count == 1:
        return best
    for factor in range(2, math.isqrt(size) + 1):
        if size % factor == 0:
            other = (factor, *_smallest_sum(size // factor, count - 1))
            best = min(best, other, key=lambda factors: (sum(factors), -len(factors)))
    return tuple(sorted(best))


def times_ring(rows: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Returns the product of a matrix and a tensor ring, X·T.

    Args:
        rows: The matrix X, (..., m, n).
        cores: The cores of T, at least two. The core for the factor n_d of n has the shape
            (..., n_d, n_d, R, R), where R is the ring rank. The first n_d is for the row digit i_d,
            and the second n_d is for the column digit j_d.

    Returns:
        The product, (..., m, n). The leading dimensions of the arguments are broadcast.

    Example:
        >>> cores = [2 * torch.eye(2)[..., None, None], 5 * torch.eye(3)[..., None, None]]
        >>> times_ring(torch.ones(1, 6), cores)
        tensor([[10., 10., 10., 10., 10., 10.]])
    """
    *first, last = cores
    front = functools.reduce(_joined, first)
    # p and q: digits of a column of X; u and v: digits of a column of the product; r, s: ring
    digits = rows.reshape(*rows.shape[:-1], front.shape[-3], last.shape[-3])
    done = torch.einsum("...mpq,...qvsr->...mpvsr", digits, last)
    return torch.einsum("...mpvsr,...purs->...muv", done, front).flatten(-2)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """Returns two neighbouring cores of a ring as one core with the product of their sizes."""
    joined = torch.einsum("...ijrs,...klst->...ikjlrt", one, other)
    return joined.flatten(-6, -5).flatten(-4, -3)
