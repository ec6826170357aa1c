"""The part `patch_embed` trains the patch embedding, so that it learns to read encrypted patches.

Source: Lin, Imaizumi, Kiya, arXiv 2507.11943. The paper trains the patch embedding together with
LoRA in every block.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.finetuning.groups import PATCH_EMBEDDING, group_of
from fl_vitlora.finetuning.part import Part

PRETRAINED = (".weight", ".bias")  # tensors that other parts add have other names


@dataclass(frozen=True, kw_only=True)
class PatchEmbedding(Part):
    """The part of a fine-tuning method that trains the patch embedding."""

    trains_patch_embedding = True
    stackable = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the weights and biases of the patch embedding."""
        names = (name for name, _ in model.named_parameters() if name.endswith(PRETRAINED))
        return [name for name in names if group_of(name) == PATCH_EMBEDDING]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True
