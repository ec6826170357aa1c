"""Houlsby adapters: a trained bottleneck after the attention and after the MLP of every block.

    y' = y + U·gelu(A·y + a) + u,    y the output of the attention, or of the MLP

The new output y' is then added to the residual stream. At the start the last matrix U and the last
shift u are zero, and therefore y' = y. The bottleneck is nonlinear, so it cannot be merged into the
layers. For each block, a client sends 2·(2·D·h + h + D) numbers.

The mean of the clients' tensors does not give the mean of the outputs of the clients' models,
because the outputs are not linear in the tensors that clients send.

Source: Houlsby et al., arXiv 1902.00751. The equation and the places of the bottlenecks come from
the paper. The paper draws U and A from a normal distribution with a standard deviation of 0.01.
Therefore training starts near y' = y in the paper. In this module U is zero, and A is drawn like
the weight of a linear layer. Therefore y' = y holds exactly at the start. The paper also trains the
normalisation layers; the method ``houlsby+norm`` trains them too.

Letters in shapes: D width, h channels inside the bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.bottleneck import Bottleneck
from fl_vitlora.finetuning.own_modules import ModulePart, parts_of_block, pretrained


@dataclass(frozen=True, kw_only=True)
class Houlsby(ModulePart):
    """The part of a fine-tuning method that adds two serial bottlenecks to every block.

    Attributes:
        bottleneck: The number h of channels inside a bottleneck.
    """

    cannot_merge = "its bottlenecks after attention and MLP are not linear"

    bottleneck: int = setting(8, "Number of channels inside a bottleneck.", "[1, inf)")

    def attach(self, model: nn.Module) -> None:
        """Adds a bottleneck after the attention and after the MLP of every block."""
        for block in targets.blocks_of(model):
            attention, mlp, proj = parts_of_block(block, "attn", "mlp", "attn.proj")
            width = pretrained(proj).out_features
            for name, module in (("houlsby_attn", attention), ("houlsby_mlp", mlp)):
                made = Bottleneck(self, width, self.bottleneck, activation=F.gelu)
                block.add_module(name, made)
                module.register_forward_hook(made.after)
