"""Full fine-tuning: every tensor of the model is trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class Full(Part):
    """The part of a fine-tuning method that trains the whole model."""

    trains_patch_embedding = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all tensors of the model."""
        return [name for name, _ in model.named_parameters()]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True
