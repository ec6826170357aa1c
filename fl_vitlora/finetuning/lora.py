"""LoRA: a frozen linear layer plus a trained low-rank product.

    W' = W + s·B·A,    s = α / r

timm computes query, key and value in one layer `qkv` with 3·D outputs; D is the width of the model.
A slice is a range of a layer's outputs. In the layer `qkv`, the first third of the outputs is the
query, the second third is the key, and the last third is the value. In all other layers, the slice
contains all outputs. An adapter is a pair of matrices B and A, whose product is added to the weight
of one slice.

Source: LoRA comes from Hu et al., arXiv 2106.09685. MeLo, arXiv 2311.08236, adapts q and v of a ViT
with r = 4 and α = 8.

Letters in shapes: B batch, T tokens, n inputs, m outputs of an adapted part of a layer, r rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError

Multiply = Callable[[Tensor, Tensor], Tensor]


class Adapter(nn.Module):
    """A pair of low-rank matrices A and B for one slice (a range of a layer's outputs).

    Args:
        inputs: The number of inputs n.
        outputs: The number of outputs m.
        rank: The rank r of the low-rank matrices.

    Raises:
        UserError: If the rank is larger than the number of inputs or outputs.

    Attributes:
        lora_A: The matrix A, (r, n), drawn from the Kaiming-uniform distribution.
        lora_B: The matrix B, (m, r). B starts at zero. Therefore the adapted layer has the same
            outputs as the pre-trained layer before training.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        check_rank(rank, inputs, outputs)
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @classmethod
    def beside(cls, weight: Tensor, rank: int) -> Adapter:
        """Returns a new pair of matrices for a slice of a layer.

        Args:
            weight: The pre-trained weight W of the slice, (m, n).
            rank: The rank r of the low-rank matrices.
        """
        return cls(weight.shape[1], weight.shape[0], rank)

    def tall(self) -> Tensor:
        """Returns the matrix that is multiplied with A·x: B, (m, r)."""
        return self.lora_B

    def product(self) -> Tensor:
        """Returns B·A, (m, n), which is added to the weight with the factor s."""
        return self.tall() @ self.lora_A


class LoRAXS(Adapter):
    """The matrices of LoRA-XS for one slice: a pair B, A and a small square matrix R between them.

    The product B·R·A is added to the weight. Only R should be trained, not B and A.

    At the start A and B are singular vectors of the pre-trained weight W ≈ B·S·A, where S contains
    the largest singular values (LoRA-XS, arXiv 2405.17604). R is zero at the start.

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        rank: The rank r of the low-rank matrices.

    Attributes:
        lora_A: The matrix A, (r, n), with orthonormal rows. The entry of each row with the largest
            magnitude is positive, so that the decomposition is the same on every machine.
        lora_B: The matrix B, (m, r), with orthonormal columns.
        lora_R: The matrix R, (r, r), which starts at zero.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__(weight.shape[1], weight.shape[0], rank)
        left, _, right = signed_svd(weight)
        self.lora_A.data.copy_(right[:rank])
        self.lora_B.data.copy_(left[:, :rank])
        self.lora_R = nn.Parameter(torch.zeros(rank, rank))

    @classmethod
    def beside(cls, weight: Tensor, rank: int) -> Adapter:
        """Returns new matrices B, R and A for a slice of a layer; see `Adapter.beside`."""
        return cls(weight, rank)

    def tall(self) -> Tensor:
        """Returns the matrix that is multiplied with A·x: B·R, (m, r)."""
        return self.lora_B @ self.lora_R


class LoRALinear(nn.Module):
    """A frozen linear layer with adapters on slices of its outputs.

    A model that reads the attribute ``weight`` of a layer directly, as timm's BEiT does, would
    ignore the adapters. This class has no attribute ``weight``, so that such a model raises an
    error.

    Args:
        base: The pre-trained linear layer, whose weight stays frozen.
        slices: A mapping from the name of each adapter to its slice. A slice is a pair: the index
            of the first output, and the index after the last output. The slices of one layer must
            not overlap.
        rank: The rank r of every adapter.
        alpha: The scale α of LoRA. The product B·A is multiplied by s = α / r.
        pair: A function that makes the matrices of a slice from the weight of the slice and the
            rank. By default, `pair` makes the matrices B and A of LoRA.

    Attributes:
        multiply: A function that applies a low-rank matrix to a tensor (B, T, n). When several
            clients are trained in one batch, the module `training.stacking` replaces `multiply` by
            a function that applies the own matrix of each client.
    """

    def __init__(
        self,
        base: nn.Linear,
        slices: Mapping[str, tuple[int, int]],
        rank: int,
        alpha: float,
        *,
        pair: Callable[[Tensor, int], Adapter] = Adapter.beside,
    ) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.slices = dict(sorted(slices.items(), key=lambda item: item[1]))
        self.adapters = nn.ModuleDict(
            {name: pair(base.weight[start:end], rank) for name, (start, end) in self.slices.items()}
        )
        self.multiply: Multiply = F.linear
        self._cuts, self._places = cuts_of(base.out_features, list(self.slices.values()))
        self._pretrained: Tensor | None = None  # the base's weight without increments

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs, (B, T, outputs of the layer), for the inputs x, (B, T, n)."""
        pairs = self._pairs()
        low = self.multiply(x, torch.cat([pair.lora_A for pair in pairs], dim=-2))
        out: Tensor = self.base(x) + self.multiply(low, self._tall(pairs))
        return out

    def _tall(self, pairs: Sequence[Adapter]) -> Tensor:
        """Returns one matrix, (m, k·r), that computes the additions of all k adapters at once.

        The entries s·B of each adapter are in the rows of its slice and in the columns of its part
        of the product A·x. All other entries are zero, so no adapter changes another slice. On a
        CPU, one product with zeros is faster than one product, sum and copy for each slice.
        """
        tall = [pair.tall() for pair in pairs]
        rank, columns = tall[0].shape[-1], sum(each.shape[-1] for each in tall)
        rows = [tall[0].new_zeros(*tall[0].shape[:-2], cut, columns) for cut in self._cuts]
        for number, (place, each) in enumerate(zip(self._places, tall, strict=True)):
            left = number * rank
            rows[place] = F.pad(each, (left, columns - left - rank))
        return torch.cat(rows, dim=-2) * self.scale

    @torch.no_grad()
    def put_increments(self, increments: Mapping[str, Tensor]) -> None:
        """Sets the frozen weight to the pre-trained weight plus s·increment, in place.

        Args:
            increments: A mapping from names of adapters to increments, (m, n). If an adapter is not
                in the mapping, the weight of its slice becomes the pre-trained weight.
        """
        if self._pretrained is None and not increments:
            return
        if self._pretrained is None:
            self._pretrained = self.base.weight.detach().clone()
        self.base.weight.copy_(self._pretrained)
        for name, increment in increments.items():
            start, end = self.slices[name]
            self.base.weight[start:end] += self.scale * increment.to(self.base.weight)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a new plain linear layer that computes the same outputs as this layer."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        layer.load_state_dict(self.base.state_dict())
        layer.to(self.base.weight)
        layer.weight.copy_(self.merged_weight())
        return layer

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Returns the weight W + s·B·A, with the products of all adapters, as a new tensor."""
        weight = self.base.weight.detach().clone()
        for (start, end), adapter in zip(self.slices.values(), self._pairs(), strict=True):
            weight[start:end] += self.scale * adapter.product()
        return weight

    def _pairs(self) -> list[Adapter]:
        return [self.adapters[name] for name in self.slices]  # type: ignore[misc]


def signed_svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the singular value decomposition W = U·diag(S)·Vᵀ, in float64 on the CPU.

    The signs of singular vectors are arbitrary. This function chooses the signs so that the entry
    with the largest magnitude in each row of Vᵀ is positive.

    Args:
        weight: The matrix W, (m, n).

    Returns:
        U, (m, k), S, (k,), in descending order, and Vᵀ, (k, n), with k = min(m, n).

    Example:
        >>> signed_svd(torch.tensor([[0.0, -2.0]]))[2]
        tensor([[0., 1.]], dtype=torch.float64)
    """
    left, values, rows = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    return left * signs.T, values, signs * rows


def check_rank(rank: int, inputs: int, outputs: int, name: str = "finetuning.rank") -> None:
    """Refuses a rank r that is larger than the number of a layer's inputs or outputs.

    Args:
        rank: The rank r of low-rank matrices.
        inputs: The number of inputs n.
        outputs: The number of outputs m.
        name: The name of the setting that has the rank, for the message.

    Raises:
        UserError: If the rank is too large.
    """
    if rank > min(inputs, outputs):
        raise UserError(
            f"{name} {rank}: a layer with {inputs} inputs and {outputs} outputs allows a rank of "
            f"at most {min(inputs, outputs)}"
        )


def cuts_of(outputs: int, slices: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Divides the outputs of a layer into pieces: the slices, and the ranges outside of slices.

    Args:
        outputs: The number of outputs of the layer.
        slices: The start and the end of each slice, in order and without overlaps.

    Returns:
        A pair of lists: the lengths of all pieces, and the positions of the slices among the
        pieces.

    Example:
        >>> cuts_of(9, [(0, 3), (6, 9)]), cuts_of(4, [(1, 2)])
        (([3, 3, 3], [0, 2]), ([1, 1, 2], [1]))
    """
    edges = sorted({0, outputs, *(edge for slice_ in slices for edge in slice_)})
    starts = edges[:-1]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    return lengths, [starts.index(start) for start, _ in slices]
