"""BitFit: only the biases are trained.

The biases of the blocks and of the last normalisation layer are trained. No other tensor of the
body is trained. The bias of the patch embedding belongs to the part ``patch_embed``, and the bias
of the classifier to the head.

Source: Ben Zaken, Ravfogel, Goldberg, arXiv 2106.10199. The paper trains all bias terms of a
language model, and its task head.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.finetuning.groups import BODY, group_of
from fl_vitlora.finetuning.method import Part


@dataclass(frozen=True, kw_only=True)
class Bias(Part):
    """The part of a fine-tuning method that trains the biases of a model's body."""

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all biases except those of the head and of the patch embedding."""
        names = (name for name, _ in model.named_parameters())
        return [n for n in names if n.endswith("bias") and group_of(n) == BODY]

    def averages_exactly(self) -> bool:
        """Returns True: what is trained are weights of the model."""
        return True
