"""BitFit: only the biases of the model are trained.

These are the biases of the transformer blocks and of the last normalisation layer. The biases of
the patch embedding and of the classifier (head) are left out: the part ``patch_embed`` trains the
first, and every method trains the second.

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
