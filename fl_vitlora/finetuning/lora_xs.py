"""LoRA-XS: a small trained matrix R stands between frozen matrices B and A of singular vectors.

    W' = W + s·B·R·A

W is the pre-trained weight, and s = α / r is the scale. A and B are the singular vectors of W with
the largest singular values. R is an r × r matrix and starts at zero. Only R is trained and sent,
which is r² numbers for each adapted weight. The class `lora.LoRAXS` has the three matrices of one
weight.

Source: Bałazy et al., arXiv 2405.17604.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import lora, targets
from fl_vitlora.finetuning.groups import LORA, group_of
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class LoRAXS(Part):
    """The part of a fine-tuning method that adds LoRA-XS to every block.

    Attributes:
        rank: The rank r of the matrices.
        alpha: The scale α; the product B·R·A is multiplied by α / r.
        targets: The names of the layers in each block that get the matrices, from `targets.LAYERS`.
    """

    stackable = True
    reads_weights = True  # `attach` computes the singular vectors of the weights

    rank: int = setting(4, "The rank r of the low-rank matrices.", "[1, inf)")
    alpha: float = setting(
        8.0,
        "The scale of LoRA-XS. The product of the three matrices is multiplied by alpha / r.",
        "(0, inf)",
    )
    targets: tuple[str, ...] = ("q", "v")

    def attach(self, model: nn.Module) -> None:
        """Adds the matrices B, R and A to each target layer; R starts at zero."""
        layer = partial(lora.LoRALinear, rank=self.rank, alpha=self.alpha, pair=lora.LoRAXS.beside)
        targets.attach(model, self.targets, layer)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all matrices R."""
        return [name for name, _ in model.named_parameters() if name.endswith(".lora_R")]

    def averages_exactly(self) -> bool:
        """Returns True, because s·B·R·A is linear in R."""
        return True

    def merge(self, model: nn.Module) -> None:
        """Adds s·B·R·A to the frozen weights and removes the matrices B, R and A."""
        targets.merge(model)


@dataclass(frozen=True, kw_only=True)
class PlannedLoRAXS(LoRAXS):
    """The variant of LoRA-XS for strategies with ``adapter = "lora_xs"``.

    In this variant A and B can also be trained. The strategy decides in which rounds A and B are
    frozen.
    """

    low_rank = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all matrices A, B and R."""
        return [name for name, _ in model.named_parameters() if group_of(name) == LORA]

    def averages_exactly(self) -> bool:
        """Returns False, because B·R·A is a product of three trained matrices."""
        return False
