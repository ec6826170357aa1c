"""Computes the outputs of a network of low-rank mixers, and the gradients of the mixers' tensors.

A mixer multiplies its matrices with columns X, (K, n, m). A token mixer has one column for each
channel of each image; the column contains that channel of all tokens, n = T. A channel mixer has
one column for each token of each image; the column contains all channels of that token, n = D. With
y = 0 before the first block, and the output b of the present block, a mixer computes

    h = b + y,   X = columns of h,   z = W_down · X + c,   a = gelu(z),   y ← y + W_up · a + d

In memory the tokens come before the images, (K, T, b, D). In this order, the columns of both kinds
of mixers are views of h, and every product is one call for all clients. The gradient is written by
hand, because automatic differentiation multiplies the matrices in another order. If the rank is
small, that order takes up to four times as long. With the columns G of ∂loss/∂y, the gradients are

    ∂W_up = G · aᵀ,   ∂d = G · 1,   ∂z = gelu'(z) ∘ (W_upᵀ · G),   ∂W_down = ∂z · Xᵀ,   ∂c = ∂z · 1
    ∂h = W_downᵀ · ∂z,   ∂loss/∂y ← ∂loss/∂y + ∂h

Letters in shapes: L blocks, T tokens, S tokens of the result, D width, r rank, n size of a mixer, m
number of columns, K clients that share a batch, b images of a client. In the formulas, b is the
output of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TENSORS = 4  # the number of trained tensors of a mixer
gelu_backward = torch.ops.aten.gelu_backward  # PyTorch's name for the derivative of gelu


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The tensors of one mixer, for K clients.

    Attributes:
        down: The matrices W_down, (K, r, n).
        down_bias: The vectors c, (K, r).
        up: The matrices W_up, (K, n, r). A token mixer after the last block has only the first S
            rows, because the result has only S tokens.
        up_bias: The vectors d, (K, n), or (K, S) for a token mixer after the last block.
        tokens: True for a token mixer, False for a channel mixer.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    tokens: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Returns the trained tensors in the order of the attributes."""
        return self.down, self.down_bias, self.up, self.up_bias

    def columns(self, x: Tensor) -> Tensor:
        """Returns the columns, (K, n, m), of a tensor (K, T, b, D), as a view of this tensor."""
        clients, first, _, width = x.shape
        return x.view(clients, first, -1) if self.tokens else x.view(clients, -1, width).mT


class Step(NamedTuple):
    """The intermediate results of one mixer, from which the mixer's gradients are computed.

    Attributes:
        x: The columns X, (K, n, m). A channel mixer after the last block has only the columns of
            the first S tokens.
        z: The numbers z before the activation function, (K, r, m).
        a: The numbers a after the activation function, (K, r, m).
    """

    x: Tensor
    z: Tensor
    a: Tensor


def refine(blocks: Tensor, mixings: Sequence[Mixing], read: int) -> Tensor:
    """Returns the first S tokens of b_L + y_L, (K, S, b, D).

    Args:
        blocks: The outputs of all blocks, (L, K, T, b, D), contiguous.
        mixings: The mixer of each block; the mixer of the last block returns only the first S
            tokens.
        read: The number S of tokens to return.
    """
    if not torch.is_grad_enabled():
        return _refined(blocks, mixings, read)[0]
    kinds = tuple(mixing.tokens for mixing in mixings)
    found: Tensor = _Refine.apply(blocks, kinds, read, *(t for m in mixings for t in m.tensors))
    return found


def _refined(blocks: Tensor, mixings: Sequence[Mixing], read: int) -> tuple[Tensor, list[Step]]:
    """Returns the result of `refine`, and the intermediate results of each mixer."""
    refined = torch.zeros_like(blocks[0])
    steps = []
    for number, (mixing, block) in enumerate(zip(mixings, blocks.unbind(), strict=True)):
        kept = read if number == len(mixings) - 1 else None
        h = block + refined if number else block
        x = mixing.columns(h if mixing.tokens else h[:, :kept])
        z = torch.baddbmm(mixing.down_bias.unsqueeze(-1), mixing.down, x)
        a = F.gelu(z)
        refined = refined[:, :kept]
        change = mixing.columns(refined)
        change += mixing.up_bias.unsqueeze(-1)
        _add_product(change, mixing.up, a)
        steps.append(Step(x, z, a))
    return blocks[-1][:, :read] + refined, steps


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds products of matrices to a tensor in place, in the memory order of this tensor.

    Args:
        sums: The tensor that changes, (K, n, m).
        left: The left factors, (K, n, r).
        right: The right factors, (K, r, m).
    """
    if sums.stride(-1) == 1:
        sums.baddbmm_(left, right)
    else:
        sums.mT.baddbmm_(right.mT, left.mT)


def _gradients(mixing: Mixing, step: Step, out: Tensor) -> tuple[list[Tensor], Tensor]:
    """Returns the gradients of the tensors of a mixer, and ∂z, (K, r, m).

    Args:
        mixing: The mixer whose gradients are computed.
        step: The intermediate results that `_refined` returned for this mixer.
        out: The columns G of the gradient ∂loss/∂y, (K, n, m).
    """
    dz = gelu_backward(torch.bmm(mixing.up.mT, out), step.z)
    down, up = torch.bmm(dz, step.x.mT), torch.bmm(step.a, out.mT).mT
    return [down, dz.sum(-1), up, out.sum(-1)], dz


class _Refine(torch.autograd.Function):
    """The function `refine` with a gradient that cannot be differentiated a second time."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, kinds: tuple[bool, ...], read: int, *tensors: Tensor
    ) -> Tensor:
        found, steps = _refined(blocks, _mixings(kinds, tensors), read)
        ctx.kinds, ctx.read, ctx.shape = kinds, read, blocks.shape
        ctx.save_for_backward(*tensors, *(tensor for step in steps for tensor in step))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,), read = gradients, ctx.read
        count = len(ctx.kinds)
        mixings = _mixings(ctx.kinds, ctx.saved_tensors[: TENSORS * count])
        steps = [Step(*kept) for kept in _groups(ctx.saved_tensors[TENSORS * count :], count)]
        total = given.new_zeros(ctx.shape[1:])  # ∂loss/∂y of all tokens
        total[:, :read] = given
        of_blocks = given.new_zeros(ctx.shape) if ctx.needs_input_grad[0] else None
        found: list[Tensor] = []
        for number in reversed(range(count)):
            mixing, kept = mixings[number], read if number == count - 1 else None
            own, dz = _gradients(mixing, steps[number], mixing.columns(total[:, :kept]))
            found = own + found
            if number or of_blocks is not None:
                changed = total if of_blocks is None else of_blocks[number]
                taken = changed if mixing.tokens else changed[:, :kept]
                _add_product(mixing.columns(taken), mixing.down.mT, dz)
            if of_blocks is not None:
                total += of_blocks[number]
        if of_blocks is not None:
            of_blocks[-1][:, :read] += given
        return of_blocks, None, None, *found


def _mixings(kinds: Sequence[bool], tensors: Sequence[Tensor]) -> list[Mixing]:
    """Returns mixers with the given tensors; an entry of `kinds` is True for a token mixer."""
    return [
        Mixing(down=down, down_bias=down_bias, up=up, up_bias=up_bias, tokens=kind)
        for kind, (down, down_bias, up, up_bias) in zip(
            kinds, _groups(tensors, len(kinds)), strict=True
        )
    ]


def _groups(tensors: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """Divides tensors into groups of equal size, in their order."""
    size = len(tensors) // count
    return [tensors[size * number : size * (number + 1)] for number in range(count)]
