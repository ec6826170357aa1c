"""Linear probing: only the classifier is trained.

Every fine-tuning method trains the classifier. Therefore ``head+bias`` is the same as ``bias``.
With this method the backbone does not change, so clients can keep the features of their images (see
the module `features`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.finetuning.groups import HEAD, group_of
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class Head(Part):
    """The part of a fine-tuning method that trains the classifier."""

    stackable = True
    frozen_backbone = True

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tensors of all classifiers (heads) of the model."""
        return [name for name, _ in model.named_parameters() if group_of(name) == HEAD]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True
