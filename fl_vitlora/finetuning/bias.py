"""BitFit: only the biases of the model are trained.

The trained biases are those of the transformer blocks and of the last normalisation layer. This
part leaves out the biases of the patch embedding, which the part ``patch_embed`` trains, and the
biases of the classifier (head), which every method trains.

If all layers are chosen, a block of width D trains 11·D numbers, which is 0.69 times the number for
LoRA with rank 4 on q and v. The paper finds that the biases of the query and of the first MLP layer
are enough for most tasks. In this project the query, the key and the value are one layer, `qkv`, so
the closest choice is ``finetuning.parameters.layers=[qkv,fc1]``. With `qkv` and `fc1`, a block
trains 7·D numbers, which is 0.44 times the number for LoRA. The mean of the clients' tensors gives
exactly the mean of the clients' models, because biases are weights of the model.

Source: Ben Zaken, Ravfogel, Goldberg, arXiv 2106.10199. The paper trains all bias terms of a
language model, and also the classifier for the task.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from fl_vitlora.errors import unknown
from fl_vitlora.finetuning.groups import BODY, group_of
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class Bias(Part):
    """The part of a fine-tuning method that trains the biases of a model's body.

    Attributes:
        layers: The names of the layers whose biases are trained; empty for all layers of the body.
    """

    layers: tuple[str, ...] = ()

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the chosen biases, without those of the head and patch embedding.

        Raises:
            UserError: If no layer of the body with a bias has a chosen name.
        """
        names = [name for name, _ in model.named_parameters()]
        biases = [n for n in names if n.endswith(".bias") and group_of(n) == BODY]
        there = dict.fromkeys(name.split(".")[-2] for name in biases)
        for layer in self.layers:
            if layer not in there:
                raise unknown("finetuning.parameters.layers", layer, there)
        return [n for n in biases if not self.layers or n.split(".")[-2] in self.layers]

    def averages_exactly(self) -> bool:
        """Returns True, because the trained tensors are themselves weights of the model."""
        return True
