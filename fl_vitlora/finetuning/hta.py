"""HTA: an increment of full rank, made of two Householder reflections and a diagonal.

    W' = W + H(a)·diag(d)·H(b) + u·wᵀ,    H(v) = I - 2·v·vᵀ / ‖v‖²

The term H(a)·diag(d)·H(b) has the form of a singular value decomposition, in which each of the two
orthogonal factors is one reflection. This term can have full rank, although only the three vectors
a, d and b describe it. The term u·wᵀ is a low-rank pair of rank 1. If the slice is not square, then
diag(d) has zero rows or columns. At the start d = 0 and u = 0, and therefore W' = W; a, b and w
are random.

A client sends all five vectors, which is 2m + 2n + min(m, n) numbers for a slice (an adapted part
of a layer). The mean of the clients' vectors does not give the mean of their weights W', because W'
contains products of trained vectors. With ``finetuning.parameters.exact=true``, the vectors a, b
and w are drawn with the seed of the run, and are never trained or sent. With this setting a client
sends only d and u, which is m + min(m, n) numbers. The mean of the clients' vectors then gives
exactly the mean of their weights, because W' is linear in d and u.

Source: Dong et al., "Efficient Adaptation of Pre-trained Vision Transformer via Householder
Transformation", arXiv 2410.22952. The equation and the rank 1 of the pair come from the paper. The
division by ‖v‖², the start at W' = W and the exact variant are our own choices. The paper adapts q,
k, v and proj: ``--set 'finetuning.targets=[q,k,v,proj]'``.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, K clients that share a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart


def householder_increment(left: Tensor, diagonal: Tensor, right: Tensor) -> Tensor:
    """Returns the product H(a)·diag(d)·H(b), (..., m, n).

    The singular values of this product are the absolute values of d.

    If D = diag(d), and a and b have the length 1, the product is D plus a matrix of rank 2:

        D + (4·(aᵀ·D·b)·a - 2·D·b)·bᵀ - 2·a·(Dᵀ·a)ᵀ

    Args:
        left: The vector a of any length, (..., m).
        diagonal: The vector d, (..., min(m, n)).
        right: The vector b of any length, (..., n).

    Example:
        >>> householder_increment(*torch.tensor([[3.0, 0.0], [2.0, 5.0], [0.0, 4.0]]))
        tensor([[-2.,  0.],
                [ 0., -5.]])
    """
    a, b = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
    size = diagonal.shape[-1]
    moved_a = F.pad(diagonal * a[..., :size], (0, b.shape[-1] - size))
    moved_b = F.pad(diagonal * b[..., :size], (0, a.shape[-1] - size))
    inner = (a * moved_b).sum(dim=-1, keepdim=True)
    first, second = 4 * inner * a - 2 * moved_b, -2 * a
    columns = torch.stack([first, second.expand_as(first)], dim=-1)
    rows = torch.stack([b.expand_as(moved_a), moved_a], dim=-2)
    increment = columns @ rows
    increment.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return increment


class HTAAdapter(SliceAdapter):
    """The vectors of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        exact: True if `left`, `right` and `pair_in` are not trained, but are buffers.

    Attributes:
        left: The vector a, (m,), drawn from the normal distribution.
        right: The vector b, (n,), drawn from the normal distribution.
        diagonal: The vector d, (min(m, n),), zero.
        pair_out: The vector u, (m,), zero.
        pair_in: The vector w, (n,), drawn from the Kaiming-uniform distribution.
    """

    left: Tensor
    right: Tensor
    pair_in: Tensor

    def __init__(self, weight: Tensor, *, exact: bool) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        drawn = {
            "left": torch.randn(outputs),
            "right": torch.randn(inputs),
            "pair_in": nn.init.kaiming_uniform_(torch.empty(1, inputs), a=math.sqrt(5))[0],
        }
        for name, vector in drawn.items():
            if exact:
                self.register_buffer(name, vector)
            else:
                self.register_parameter(name, nn.Parameter(vector))
        self.diagonal = nn.Parameter(torch.zeros(min(outputs, inputs)))
        self.pair_out = nn.Parameter(torch.zeros(outputs))

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + H(a)·diag(d)·H(b) + u·wᵀ."""
        pair = self.pair_out.unsqueeze(-1) * self.pair_in.unsqueeze(-2)
        return weight + householder_increment(self.left, self.diagonal, self.right) + pair


@dataclass(frozen=True, kw_only=True)
class HTA(SlicePart):
    """The part of a fine-tuning method that adds HTA to every block.

    Attributes:
        exact: True if only d and u are trained and sent. If `exact` is True, the mean of the
            clients' vectors gives exactly the mean of their weights.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    exact: bool = setting(
        default=False, explanation="True to train only vectors in which the weight is linear."
    )

    def averages_exactly(self) -> bool:
        """Returns True if only d and u are trained."""
        return self.exact

    def adapter(self, weight: Tensor) -> HTAAdapter:
        """Returns the vectors for one slice (an adapted part of a layer)."""
        return HTAAdapter(weight, exact=self.exact)
