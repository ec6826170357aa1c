"""Low rank: replaces a matrix by two thin matrices whose product approximates the matrix best.

A tensor of shape (m, …) counts as a matrix of m rows. If the two factors are smaller than the
matrix, the inner codec writes the factors P (rank, m) and R (rank, columns) instead, where PᵀR
approximates the tensor. Each factor contains the square root of the singular values, so P and
R have the same magnitude. A tensor whose two factors are not smaller than the matrix is written
whole.

Sources: Halko, Martinsson, Tropp, "Finding structure with randomness", arXiv 0909.4061 (the
iteration); Vogels et al., "PowerSGD", arXiv 1905.13727 (low rank for updates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs.arguments import RANK
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.codec import Floats, Shapes, scalars
from fl_vitlora.communication.codecs.transform import Transform

LARGEST = np.finfo(np.float32).max
ITERATIONS = 2
MORE_DIRECTIONS = 8  # directions beyond the rank, so that the smallest singular values converge


def factors(matrix: Floats, rank: int, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """Approximates a matrix by subspace iteration from a random start.

    Args:
        matrix: The matrix (m, c), finite.
        rank: The rank of the approximation, at most min(m, c).
        draw: The random generator for the start of the iteration.

    Returns:
        P (rank, m) and R (rank, c); their product PᵀR is nearly the best approximation of that
        rank.

    Example:
        >>> P, R = factors(np.float32([[1, 2, 3], [2, 4, 6]]), 1, np.random.default_rng(0))
        >>> (P.T @ R).round(3).tolist()
        [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    """
    largest = np.abs(matrix).max()
    A = matrix / (largest or np.float32(1))
    width = min(rank + MORE_DIRECTIONS, *A.shape)
    Q = _basis(A @ draw.standard_normal((A.shape[1], width), dtype=np.float32))
    for _ in range(ITERATIONS):
        Q = _basis(A @ _basis(A.T @ Q))
    U, s, V = np.linalg.svd(Q.T @ A, full_matrices=False)
    roots = (np.sqrt(s[:rank]) * np.sqrt(largest))[:, None]
    return roots * (Q @ U[:, :rank]).T, roots * V[:rank]


def product(P: Floats, R: Floats) -> Floats:
    """Returns PᵀR as a vector, clipped to the range of float32.

    The products of the rows of P and R are added one after the other, so that the result has the
    same bits on every machine.
    """
    whole = np.zeros((P.shape[1], R.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a NaN is refused by `decode`
        for p, r in zip(P, R, strict=True):
            whole += p[:, None] * r
        np.clip(whole, -LARGEST, LARGEST, out=whole)
    return whole.reshape(-1)


def factor_shapes(shape: tuple[int, ...], rank: int) -> Shapes:
    """Returns the shapes of P and R.

    Args:
        shape: The shape of the tensor.
        rank: The rank of the approximation.

    Returns:
        The two shapes of the factors, or the shape of the tensor if the tensor is written whole.

    Example:
        >>> factor_shapes((64, 16, 2), 4), factor_shapes((4, 4), 4)
        (((4, 64), (4, 32)), ((4, 4),))
    """
    rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
    smaller = rank * (rows + columns) < rows * columns
    return ((rank, rows), (rank, columns)) if smaller else (shape,)


@dataclass(frozen=True, kw_only=True)
class LowRank(Transform):
    """A transform that replaces every large matrix by thin factors.

    Attributes:
        rank: The rank of the approximation.
    """

    rank: int = field(metadata=RANK)
    name: ClassVar[str] = "lowrank"
    example: ClassVar[str] = "lowrank(4)+int8"

    @property
    def contracts(self) -> bool:
        """Returns True if the inner codec is fine enough for factors (`Codec.fine`)."""
        return self.inner.fine

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes the factors of large matrices, and all other tensors, with the inner codec."""
        parts: list[Floats] = []
        for shape, tensor in zip(shapes, _cut(values, shapes), strict=True):
            if len(factor_shapes(shape, self.rank)) == 1:
                parts.append(tensor)
            else:
                pair = factors(tensor.reshape(shape[0], -1), self.rank, draw)
                parts += [factor.reshape(-1) for factor in pair]
        return self.inner.encode(np.concatenate(parts), self._inner_shapes(shapes), draw)

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads the two factors of each large matrix and multiplies them."""
        inner = self._inner_shapes(shapes)
        parts = iter(_cut(self.inner.decode(reader.rest(), inner), inner))
        tensors: list[Floats] = []
        for shape in shapes:
            first = next(parts)
            if len(factor_shapes(shape, self.rank)) == 1:
                tensors.append(first)
            else:
                P, R = first.reshape(self.rank, -1), next(parts).reshape(self.rank, -1)
                tensors.append(product(P, R))
        return np.concatenate(tensors)

    def _inner_shapes(self, shapes: Shapes) -> Shapes:
        """Returns the shapes of the tensors that the inner codec writes."""
        return tuple(part for shape in shapes for part in factor_shapes(shape, self.rank))


def _basis(columns: Floats) -> Floats:
    """Returns an orthonormal basis of the space that the columns span."""
    return np.linalg.qr(columns).Q


def _cut(values: Floats, shapes: Shapes) -> list[Floats]:
    """Cuts a vector into the scalars of each tensor."""
    ends = np.cumsum([scalars((shape,)) for shape in shapes])
    return np.split(values, ends[:-1])
