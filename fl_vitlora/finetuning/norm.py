"""LayerNorm tuning: only the weights and biases of the normalisation layers are trained.

Source: Zhao et al., "Tuning LayerNorm in Attention", arXiv 2312.11420. The paper trains the
normalisation layers of the attention blocks; this part trains all normalisation layers of the body.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.finetuning.groups import BODY, group_of
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class Norm(Part):
    """The part of a fine-tuning method that trains the normalisation layers of a model's body."""

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the weights and biases of all normalisation layers of the body."""
        layers = (m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm))
        own = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
        named = model.named_parameters()
        return [name for name, p in named if id(p) in own and group_of(name) == BODY]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True
