"""SODA: the singular values of a weight are shifted, and the inputs of the layer are rotated.

    W = U·diag(S)·Vᵀ,    W' = U·diag(relu(S + δ))·Vᵀ·Rᵀ,    R = R₁ ⊗ R₂ ⊗ R₃

The rotation R acts on the n inputs and is a Kronecker product of small rotations. Each small
rotation has Cayley coordinates, which are the entries below the diagonal of a skew-symmetric matrix
K:

    R_i = (I + K_i/2)⁻¹·(I - K_i/2),    K_i = -K_iᵀ

The adapter computes W + U·(diag(relu(S + δ))·Vᵀ·Rᵀ - diag(S)·Vᵀ). At the start δ = 0 and K = 0, and
therefore W' is bit for bit equal to W, although U·diag(S)·Vᵀ differs from W by rounding.

A client sends the shift δ and the coordinates of K, but never U, S and V. For a square slice (an
adapted part of a layer) these are 384 + 71 numbers if n = 384, and 768 + 163 numbers if n = 768.
The mean of the clients' tensors does not give the mean of their weights, because W' is not linear
in K. The mean of the clients' coordinates still gives a rotation, because the mean of
skew-symmetric matrices is skew-symmetric. With ``finetuning.parameters.exact=true``, the inputs are
not rotated and a client sends only δ. With this setting, the mean of the clients' shifts gives
exactly the mean of their weights as long as S + δ > 0. If an entry of S + δ is below zero, this
entry of δ gets no gradient and does not change any more.

The server and the clients compute the decomposition in float64 on their CPUs. If singular values
are nearly equal, another machine can find other singular vectors. Therefore the server and the
clients should use the same version of PyTorch.

Source: "Spectrum-Aware Parameter Efficient Fine-Tuning for Diffusion Models", arXiv 2405.21050. The
equation and the factors 6·8·16 of 768 come from the paper. The Cayley coordinates, the start at
δ = 0, the exact variant and the learning rates are our own choices. The paper adapts all layers of
the attention: ``--set 'finetuning.targets=[q,k,v,proj]'``.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, k = min(m, n), K clients that
share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.kronecker import balanced_factors, times_ring
from fl_vitlora.finetuning.lora import signed_svd
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart

PUBLISHED: Mapping[int, tuple[int, ...]] = {768: (6, 8, 16)}  # factors of the paper, not balanced


def cayley_rotation(coordinates: Tensor, size: int) -> Tensor:
    """Returns the rotation R = (I + K/2)⁻¹·(I - K/2), (..., size, size).

    Args:
        coordinates: The entries of K below its diagonal, row by row, (..., size·(size-1)/2).
        size: The number of rows of K.

    Example:
        >>> cayley_rotation(torch.tensor([2.0]), 2)
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    row, column = torch.tril_indices(size, size, offset=-1, device=coordinates.device)
    lower = coordinates.new_zeros(*coordinates.shape[:-1], size, size)
    lower[..., row, column] = coordinates
    half = (lower - lower.mT) / 2
    identity = torch.eye(size, dtype=half.dtype, device=half.device)
    rotation: Tensor = torch.linalg.solve(identity + half, identity - half)
    return rotation


class SODAAdapter(SliceAdapter):
    """The shift, the rotation and the decomposition of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        exact: True if the inputs are not rotated.

    Attributes:
        shift: The vector δ, (k,), zero.
        turn: The coordinates of K₁, K₂ and K₃ in one vector, zero. If `exact` is True, there is no
            attribute `turn`.
        U: The left singular vectors, (m, k), a buffer.
        S: The singular values, (k,), a buffer.
        Vt: The right singular vectors as rows, (k, n), a buffer.

    Raises:
        UserError: If the inputs are rotated and n has no factors.
    """

    U: Tensor
    S: Tensor
    Vt: Tensor

    def __init__(self, weight: Tensor, *, exact: bool) -> None:
        super().__init__()
        inputs = weight.shape[1]
        self.factors = () if exact else PUBLISHED.get(inputs) or balanced_factors(inputs)
        for name, tensor in zip(("U", "S", "Vt"), signed_svd(weight), strict=True):
            self.register_buffer(name, tensor.to(weight), persistent=False)
        self.shift = nn.Parameter(torch.zeros_like(self.S))
        self.lengths = [size * (size - 1) // 2 for size in self.factors]
        if self.factors:
            self.turn = nn.Parameter(weight.new_zeros(sum(self.lengths)))

    def rotations(self) -> list[Tensor]:
        """Returns the rotations R₁, R₂ and R₃; an empty list if the inputs are not rotated."""
        turns = torch.split(self.turn, self.lengths, dim=-1) if self.factors else ()
        return [cayley_rotation(t, size) for t, size in zip(turns, self.factors, strict=True)]

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = U·diag(relu(S + δ))·Vᵀ·Rᵀ, up to the rounding of the decomposition."""
        moved = torch.relu(self.S + self.shift).unsqueeze(-1) * self.Vt
        if rotations := self.rotations():
            moved = times_ring(moved, [rotation.mT[..., None, None] for rotation in rotations])
        return weight + self.U @ (moved - self.S.unsqueeze(-1) * self.Vt)


@dataclass(frozen=True, kw_only=True)
class SODA(SlicePart):
    """The part of a fine-tuning method that adds SODA to every block.

    Attributes:
        exact: True if only δ is trained and sent. If `exact` is True, the mean of the clients'
            shifts gives exactly the mean of their weights.
        shift_rate: The factor by which the learning rate of δ is multiplied.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    reads_weights = True  # `attach` computes the singular vectors of the weights

    exact: bool = setting(
        default=False, explanation="True to train only vectors in which the weight is linear."
    )

    shift_rate: float = setting(
        5.0, "Factor by which the learning rate of the shifts is multiplied.", "(0, inf)"
    )

    def rate(self, name: str) -> float:
        """Returns the factor for the learning rate of a tensor: `shift_rate` for δ, otherwise 1."""
        return self.shift_rate if name.endswith(".shift") else 1.0

    def adapter(self, weight: Tensor) -> SODAAdapter:
        """Returns the shift and the rotation for one slice (an adapted part of a layer).

        Raises:
            UserError: If the inputs are rotated, but the number of inputs has no factors.
        """
        return SODAAdapter(weight, exact=self.exact)
