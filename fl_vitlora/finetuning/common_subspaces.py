"""Coordinates of a weight's change in subspaces that all clients have in common.

    subspaces 0, 2, 4, ...:  ΔW = Qᵀ·C,   Q (r, m),   C (r, n)
    subspaces 1, 3, 5, ...:  ΔW = Cᵀ·Q,   Q (r, n),   C (r, m)
    W' = W + the sum of ΔW over all subspaces

Q has orthonormal rows. The first Q is random and drawn with the seed of the run. Every later Q
holds the leading right singular vectors of the matrix C of the preceding subspace. Therefore the
server and the clients compute the same Q from tensors that they already have. W' is linear in the
matrix C of the subspace that is trained at present.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_vitlora.finetuning.lora import check_rank
from fl_vitlora.finetuning.singular_vectors import leading_directions
from fl_vitlora.finetuning.slices import SliceAdapter


class CommonSubspaces(SliceAdapter):
    """The coordinates of one slice (an adapted part of a layer) in all subspaces.

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        rank: The largest rank r of a subspace.
        count: The number of subspaces.

    Attributes:
        subspaces: The rows of C of each subspace, r vectors of length n or m; zero at the start.
            Each row is a separate tensor, because a row can be frozen in some rounds.
        first: The random Q of the first subspace, (r, m).
    """

    first: Tensor

    def __init__(self, weight: Tensor, rank: int, count: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        check_rank(rank, inputs, outputs)
        self.subspaces = nn.ModuleList(
            nn.ParameterList(nn.Parameter(torch.zeros(length)) for _ in range(rank))
            for length in ((inputs, outputs)[index % 2] for index in range(count))
        )
        self.register_buffer("first", leading_directions(torch.randn(rank, outputs)).to(weight))
        self._bases: dict[int, tuple[Tensor, Tensor]] = {}  # for each subspace: last C and its Q

    def coordinates(self, index: int) -> Tensor:
        """Returns the matrix C of one subspace, (r, n) or (r, m)."""
        rows: tuple[Tensor, ...] = tuple(self.subspaces[index].parameters())
        return torch.stack(rows, dim=-2)

    def basis(self, index: int) -> Tensor:
        """Returns the matrix Q of one subspace, (r, m) or (r, n).

        This method computes Q again only if the matrix C of the preceding subspace has changed.
        """
        if not index:
            return self.first
        before = self.coordinates(index - 1).detach()
        known = self._bases.get(index)
        if known is None or known[0].dtype != before.dtype or not torch.equal(known[0], before):
            known = self._bases[index] = (before, leading_directions(before))
        return known[1]

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + ΣQᵀ·C + ΣCᵀ·Q, without the terms whose C is frozen at zero."""
        for index in range(len(self.subspaces)):
            coordinates = self.coordinates(index)
            if coordinates.requires_grad or coordinates.any():
                change = self.basis(index).mT @ coordinates
                weight = weight + (change.mT if index % 2 else change)
        return weight
