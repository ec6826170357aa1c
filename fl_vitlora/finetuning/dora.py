"""DoRA: each row of a weight is split into its length and its direction.

Training changes the lengths directly, and a low-rank pair (LoRA) changes the directions:

    W' = m · (W + s·B·A) / ‖W + s·B·A‖,    m = ‖W‖ at the start,    s = α / r

The norm ‖·‖ is computed for each row of the matrix; each row belongs to one output of the layer.
When gradients are computed, the norm counts as a constant, which saves memory (section 4.3 of the
paper). At the start B = 0 and m = ‖W‖, and therefore W' = W.

Source: Liu et al., arXiv 2402.09353. In this module each slice of a layer (for example the query)
has its own lengths m.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, r rank. In the equation, m is
the vector of lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.lora import Adapter
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart


class DoRAAdapter(SliceAdapter):
    """The low-rank pair and the lengths m of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        rank: The rank r of the low-rank matrices.
        scale: The factor s = α / r of the product B·A.

    Attributes:
        lora_A: The matrix A, (r, n), drawn as in LoRA.
        lora_B: The matrix B, (m, r), zero.
        magnitude: The trained lengths of the rows of W', (m,).
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        pair = Adapter.beside(weight, rank)
        self.lora_A, self.lora_B = pair.lora_A, pair.lora_B
        self.magnitude = nn.Parameter(weight.norm(dim=1))
        self.scale = scale

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = m · (W + s·B·A) / ‖W + s·B·A‖."""
        moved = weight + self.scale * (self.lora_B @ self.lora_A)
        factor = self.magnitude / moved.detach().norm(dim=-1)
        directed: Tensor = moved * factor.unsqueeze(-1)
        return directed


@dataclass(frozen=True, kw_only=True)
class DoRA(SlicePart):
    """The part of a fine-tuning method that adds DoRA to every block.

    The attribute `low_rank` of this part is False, because DoRA does not simply add the product B·A
    to the weight. A strategy that merges or factors products B·A would give wrong results.

    Attributes:
        rank: The rank r of the pairs.
        alpha: The scale α; the product B·A is multiplied by α / r.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    rank: int = setting(4, "Rank r of the low-rank matrices.", "[1, inf)")
    alpha: float = setting(
        8.0, "Scale of LoRA. The product B·A is multiplied by alpha / r.", "(0, inf)"
    )

    def adapter(self, weight: Tensor) -> DoRAAdapter:
        """Returns a low-rank pair and the lengths m for one slice (a part of a layer)."""
        return DoRAAdapter(weight, self.rank, self.alpha / self.rank)
