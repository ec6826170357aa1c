"""A bottleneck: a small network that maps each token to h channels and back to D channels.

    f(x) = s · (U·σ(A·x + a) + u)

Fine-tuning methods differ in the place of the bottleneck and in the nonlinearity σ. A part of a
method adds the bottleneck to a module of a block with one of three hooks. With the hook `before`,
the module's input x becomes x + f(x). With `after`, the module's output y becomes y + f(y). With
`beside`, the output y for the input x becomes y + f(x). Hooks do not change the names of the
pre-trained tensors, so the parts of a method, such as `lora+adaptformer`, do not disturb each
other.

If U has g groups, the h channels and the D outputs are each divided into g equal pieces. Each piece
of the channels computes one piece of the outputs. U is then block-diagonal and has D·h/g numbers.

Letters in shapes: B batch, T tokens, D width, h channels inside the bottleneck, g groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.own_modules import OwnModule
from fl_vitlora.finetuning.part import Part

Activation = Callable[[Tensor], Tensor]


class Bottleneck(OwnModule):
    """The trained matrices and shifts of a bottleneck.

    Args:
        owner: The part that adds the bottleneck.
        width: The number D of inputs and of outputs.
        hidden: The number h of channels inside the bottleneck.
        activation: The nonlinearity σ, which acts on each entry; None for a linear bottleneck.
        scale: The factor s of the bottleneck's output.
        groups: The number g of groups of U.

    Attributes:
        down: The matrix A, (h, D), drawn as PyTorch draws the weight of a linear layer.
        down_shift: The shift a, (h,), zero.
        up: The matrix U, (D, h/g), zero. Because U is zero, f(x) = 0 before training.
        up_shift: The shift u, (D,), zero.

    Raises:
        UserError: If h is larger than D, or if h or D is not a multiple of g.
    """

    def __init__(
        self,
        owner: Part,
        width: int,
        hidden: int,
        *,
        activation: Activation | None = None,
        scale: float = 1.0,
        groups: int = 1,
    ) -> None:
        super().__init__(owner)
        if hidden > width or hidden % groups or width % groups:
            raise UserError(
                f"finetuning.parameters.bottleneck is {hidden}, with {groups} groups; expected at "
                f"most {width}, the width of the model, and multiples of the number of groups for "
                "the bottleneck and the width"
            )
        self.activation, self.scale, self.groups = activation, scale, groups
        self.down = nn.Parameter(torch.empty(hidden, width))
        self.down_shift = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(width, hidden // groups))
        self.up_shift = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output f(x) of the bottleneck, (B, T, D), for tokens x, (B, T, D)."""
        low = self.affine(x, self.down, self.down_shift)
        if self.activation is not None:
            low = self.activation(low)
        pieces = zip(low.chunk(self.groups, -1), self.up.chunk(self.groups, -2), strict=True)
        wide = torch.cat([self.multiply(piece, matrix) for piece, matrix in pieces], dim=-1)
        return self.scale * (wide + self.for_each_image(self.up_shift, x.shape[0]))

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the input x of a module by x + f(x); a forward pre-hook of PyTorch."""
        del module
        return (args[0] + self(args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Replaces the output y of a module by y + f(y); a forward hook of PyTorch."""
        del module, args
        changed: Tensor = output + self(output)
        return changed

    def beside(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Replaces the output y of a module with the input x by y + f(x); a forward hook."""
        del module
        changed: Tensor = output + self(args[0])
        return changed

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Returns the matrix s·U·A, (D, D), and the shift s·(U·a + u), (D,), of a linear f."""
        up: Tensor = torch.block_diag(*self.up.chunk(self.groups))  # type: ignore[no-untyped-call]
        return self.scale * (up @ self.down), self.scale * (up @ self.down_shift + self.up_shift)
