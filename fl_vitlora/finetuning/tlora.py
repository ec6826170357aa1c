"""TLoRA: a trained transform of a layer's inputs, plus a low-rank residual.

    W' = W·T + s·B·A,    s = α / √r

The transform T, (n, n), is a tensor ring of small cores Aᵈ (see `kronecker`). With the ring rank
R = 1, T is a Kronecker product. T can have full rank, and changes every entry of the weight. At the
start every matrix Aᵈ[:, :, r, r'] of a core is I / R. Therefore T = I. B is zero and A is random.

A client sends the cores and the pair: R²·Σ n_d² + r·(m + n) numbers for a slice (an adapted part of
a layer). The cores have 164·R² numbers if n = 384, and 272·R² numbers if n = 768. The mean of the
clients' tensors does not give the mean of their weights, because W' contains products of the cores,
and the product of B and A.

If one core is multiplied by a number and another core is divided by the same number, T does not
change. Therefore the cores of different clients can drift apart. A penalty on the distance of the
cores to their start prevents this:

    weight · Σ ‖Aᵈ[:, :, r, r'] - I / R‖²

Source: "Transformed Low-rank Adaptation via Tensor Decomposition", arXiv 2501.08727. The equation,
the scale, the start and the ring come from the paper. The norm in the penalty is squared, unlike in
the paper, because a penalty must be a sum over entries. The residual is the low-rank pair of the
authors' code; this module does not have the tensor-ring residual of the paper's text. The default
in the authors' code is α = 1. The default of this module is α = 4, which reached a higher accuracy
in short runs on the bundled model.

Letters in shapes: n = Π n_d inputs, m outputs of an adapted part of a layer, r rank, R ring rank, K
clients that share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.kronecker import balanced_factors, times_ring
from fl_vitlora.finetuning.lora import check_rank
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart

CORES = ".transform."  # a text that occurs in the names of all cores and of no other tensor


def identity_core(size: int, ring_rank: int) -> Tensor:
    """Returns a core of T = I, (size, size, R, R), which is I / R for every pair of ring indices.

    Args:
        size: The factor n_d of the number of inputs, which is the size of the core.
        ring_rank: The ring rank R.

    Example:
        >>> identity_core(2, 1)[..., 0, 0]
        tensor([[1., 0.],
                [0., 1.]])
    """
    start = torch.eye(size)[..., None, None] / ring_rank
    return start.repeat(1, 1, ring_rank, ring_rank)


class TLoRAAdapter(SliceAdapter):
    """The cores of T and the low-rank pair of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        ring_rank: The ring rank R.
        rank: The rank r of the pair.
        alpha: The scale α; the product B·A is multiplied by s = α / √r.

    Attributes:
        transform: The cores of T, each (n_d, n_d, R, R).
        lora_A: The matrix A, (r, n), drawn from the Kaiming-normal distribution.
        lora_B: The matrix B, (m, r), zero.

    Raises:
        UserError: If n has no factors, or the rank is too large.
    """

    def __init__(self, weight: Tensor, *, ring_rank: int, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        check_rank(rank, inputs, outputs, "finetuning.parameters.residual_rank")
        cores = [identity_core(size, ring_rank) for size in balanced_factors(inputs)]
        self.transform = nn.ParameterList(cores)
        self.lora_A = nn.Parameter(nn.init.kaiming_normal_(torch.empty(rank, inputs)))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = alpha / rank**0.5

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W·T + s·B·A."""
        residual: Tensor = self.scale * (self.lora_B @ self.lora_A)
        return times_ring(weight, list(self.transform)) + residual


@dataclass(frozen=True, kw_only=True)
class TLoRA(SlicePart):
    """The part of a fine-tuning method that adds TLoRA to every block.

    Attributes:
        ring_rank: The ring rank R of the transform.
        residual_rank: The rank r of the low-rank residual.
        residual_alpha: The scale α of the residual, which is multiplied by α / √r.
        core_rate: The factor by which the learning rate of the cores is multiplied.
        identity_penalty: The weight of the penalty on the distance of the cores to their start.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    ring_rank: int = setting(1, "Ring rank R of the transform; 1 is a Kronecker product.", "[1, 8]")
    residual_rank: int = setting(1, "Rank r of the low-rank residual.", "[1, inf)")
    residual_alpha: float = setting(4.0, "Scale of the low-rank residual.", "(0, inf)")
    core_rate: float = setting(
        0.3, "Factor by which the learning rate of the cores is multiplied.", "(0, inf)"
    )
    identity_penalty: float = setting(
        1e-3, "Weight of the penalty on the distance of the cores to their start.", "[0, inf)"
    )

    def adapter(self, weight: Tensor) -> TLoRAAdapter:
        """Returns the cores and the pair for one slice (an adapted part of a layer).

        Raises:
            UserError: If the number of inputs has no factors, or the rank is too large.
        """
        return TLoRAAdapter(
            weight, ring_rank=self.ring_rank, rank=self.residual_rank, alpha=self.residual_alpha
        )

    def rate(self, name: str) -> float:
        """Returns the factor for a tensor's learning rate: `core_rate` for cores, otherwise 1."""
        return self.core_rate if CORES in name else 1.0

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns the weighted squared distance between all cores and their values at the start."""
        del anchor
        cores = [core for name, core in parameters.items() if CORES in name]
        starts = [identity_core(core.shape[-3], self.ring_rank).to(core) for core in cores]
        squares = [(c - s).square().sum() for c, s in zip(cores, starts, strict=True)]
        return self.identity_penalty * torch.stack(squares).sum() if squares else 0.0
