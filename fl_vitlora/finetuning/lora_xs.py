"""LoRA-XS: a small trained matrix R between frozen B and A, which are singular vectors.

    W + s·B·R·A

A and B are the leading singular vectors of the pre-trained weight W; R is r × r and starts at zero.
Only R is trained and sent: r² numbers a pair. `lora.LoRAXS` has the layer.

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
from fl_vitlora.finetuning.method import Part


@dataclass(frozen=True, kw_only=True)
class LoRAXS(Part):
    """LoRA-XS in every block.

    Attributes:
        rank: The rank r of the matrices.
        alpha: The scale α; the product is multiplied by α / r.
        targets: The layers of a block that get the matrices (`targets.LAYERS`).
    """

    stackable = True

    rank: int = setting(4, "Rank r of the low-rank matrices.", "[1, inf)")
    alpha: float = setting(8.0, "Scale of the low-rank matrices.", "(0, inf)")
    targets: tuple[str, ...] = ("q", "v")

    def attach(self, model: nn.Module) -> None:
        """Puts B·R·A on the target layers; R starts at zero."""
        layer = partial(lora.LoRALinear, pair=lora.LoRAXS.beside)
        targets.attach(model, self.targets, self.rank, self.alpha, layer=layer)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all R."""
        return [name for name, _ in model.named_parameters() if name.endswith(".lora_R")]

    def merge(self, model: nn.Module) -> None:
        """Adds s·B·R·A to the weights and takes the matrices away."""
        targets.merge(model)


@dataclass(frozen=True, kw_only=True)
class PlannedLoRAXS(LoRAXS):
    """LoRA-XS as a strategy with ``adapter = "lora_xs"`` asks for it.

    A and B count as trained, too. The strategy's plan lets them rest, or trains them.
    """

    low_rank = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all A, B and R."""
        return [name for name, _ in model.named_parameters() if group_of(name) == LORA]
