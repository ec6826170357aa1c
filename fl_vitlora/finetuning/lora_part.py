"""The part `lora` adds pairs of low-rank matrices B and A to frozen layers in every block.

The module `lora` has the classes of these layers.

Source: Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.groups import LORA, group_of
from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class LoRA(Part):
    """The part of a fine-tuning method that adds LoRA to every block.

    Attributes:
        rank: The rank r of the pairs.
        alpha: The scale α; the product B·A is multiplied by α / r.
        targets: The names of the layers in each block that get a pair, from `targets.LAYERS`.
    """

    low_rank = True
    stackable = True

    rank: int = setting(4, "The rank r of the low-rank matrices.", "[1, inf)")
    alpha: float = setting(
        8.0,
        "The scale of LoRA. The product of the low-rank matrices is multiplied by alpha / r.",
        "(0, inf)",
    )
    targets: tuple[str, ...] = ("q", "v")

    def attach(self, model: nn.Module) -> None:
        """Adds a low-rank pair to each target layer, with random matrices A and zero matrices B."""
        layer = partial(LoRALinear, rank=self.rank, alpha=self.alpha)
        targets.attach(model, self.targets, layer)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all matrices A and B."""
        return [name for name, _ in model.named_parameters() if group_of(name) == LORA]

    def merge(self, model: nn.Module) -> None:
        """Adds s·B·A to the frozen weights and removes the pairs of matrices."""
        targets.merge(model)
