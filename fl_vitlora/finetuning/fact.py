"""FacT: the increments of all layers form one tensor, which is factorised (tensor-train form).

All square pieces of all adapted weights are stacked into one tensor (pieces, D, D). A weight of
size (4·D, D), such as `fc1`, has four pieces. The increment of piece i is

    ΔWᵢ = s·V·Cᵢ·U,    V (D, r), Cᵢ (r, r), U (r, D)

All pieces of all layers share U and V, but each piece has its own core Cᵢ. Therefore a client sends
2·D·r numbers for the whole model, and r² further numbers for each piece. After training, each
increment is added to the weight of its layer.

The mean of the clients' tensors does not give the mean of their weights, because U, V and C are
multiplied.

Source: Jie and Deng, arXiv 2212.03145 (FacT-TT). The equation comes from the paper. The start is
the one of the authors' experiments: V is zero, and U and C are drawn like the weights of linear
layers. The paper adapts q, k, v, proj, fc1 and fc2; in this module the setting `finetuning.targets`
chooses the layers. The paper searches for the best s for each data set; the default of this module
is s = 1.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, D width, r rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.lora import check_rank
from fl_vitlora.finetuning.slices import AdaptedLinear, SliceAdapter, SlicePart


class SharedFactors(nn.Module):
    """The matrices U and V, which all layers of the model share.

    Args:
        width: The width D.
        rank: The rank r of the low-rank matrices.

    Attributes:
        inner: The matrix U, (r, D), drawn from the Kaiming-uniform distribution.
        outer: The matrix V, (D, r), zero.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        check_rank(rank, width, width)
        self.inner = nn.Parameter(torch.empty(rank, width))
        self.outer = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.inner, a=math.sqrt(5))


class FacTAdapter(SliceAdapter):
    """The cores of one slice (an adapted part of a layer), and the matrices U and V.

    Args:
        weight: The pre-trained weight W of the slice, (m, n). One of m and n is a multiple of the
            other.
        rank: The rank r of the low-rank matrices.
        scale: The factor s of the increments.

    Attributes:
        core: The cores Cᵢ, (pieces, r, r), drawn from the Kaiming-uniform distribution.
        shared: The matrices U and V. `FacT.attach` makes all adapters use the same U and V.

    Raises:
        UserError: If the weight does not consist of square pieces.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        long, width = max(weight.shape), min(weight.shape)
        if long % width:
            raise UserError(
                f"method fact divides weights into square pieces, but a weight has the shape "
                f"{weight.shape[0]} x {weight.shape[1]}; choose other finetuning.targets"
            )
        self.scale = scale
        self.shared = SharedFactors(width, rank)
        self.core = nn.Parameter(torch.empty(long // width, rank, rank))
        nn.init.uniform_(self.core, -1 / math.sqrt(rank), 1 / math.sqrt(rank))

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + ΔW; the square pieces of ΔW stand below or beside each other."""
        inner, outer = self.shared.inner.unsqueeze(-3), self.shared.outer.unsqueeze(-3)
        pieces = outer @ self.core @ inner  # (..., pieces, D, D)
        if weight.shape[0] < weight.shape[1]:
            pieces = pieces.transpose(-3, -2)
        increment = pieces.reshape(*pieces.shape[:-3], *weight.shape)
        return weight + self.scale * increment


@dataclass(frozen=True, kw_only=True)
class FacT(SlicePart):
    """The part of a fine-tuning method that adds factorised increments to every block.

    Attributes:
        rank: The rank r of the matrices U, V and Cᵢ.
        scale: The factor s of the increments.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    rank: int = setting(4, "Rank r of the factors.", "[1, inf)")
    scale: float = setting(1.0, "Factor of the increments.", "(0, inf)")

    def adapter(self, weight: Tensor) -> FacTAdapter:
        """Returns the cores of one slice (an adapted part of a layer)."""
        return FacTAdapter(weight, self.rank, self.scale)

    def attach(self, model: nn.Module) -> None:
        """Adds cores to each target slice of every block; all slices share one pair U and V.

        Raises:
            UserError: If the slices have pieces of different sizes.
        """
        SlicePart.attach(self, model)
        layers = (m for m in model.modules() if isinstance(m, AdaptedLinear) and m.owner == self)
        adapters = [a for layer in layers for a in layer.adapters.values()]
        own = [adapter for adapter in adapters if isinstance(adapter, FacTAdapter)]
        shapes = {tuple(adapter.shared.inner.shape) for adapter in own}
        if len(shapes) > 1:
            raise UserError(
                "method fact shares its matrices between all layers, but the layers have the "
                f"widths {sorted(width for _, width in shapes)}; choose finetuning.targets of one "
                "width"
            )
        for adapter in own:
            adapter.shared = own[0].shared
