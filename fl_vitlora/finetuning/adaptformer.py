"""AdaptFormer: a trained bottleneck beside the MLP of every block.

    y = MLP(x) + s · (U·relu(A·x + a) + u),    x the normalised input of the MLP

The outputs of the MLP and of the bottleneck are added to the residual stream. At the start the last
matrix U and the last shift u are zero. Therefore the model has the same outputs as the pre-trained
model. The bottleneck is nonlinear, so it cannot be merged into the MLP. For each block, a client
sends 2·D·h + h + D numbers.

The mean of the clients' tensors does not give the mean of the outputs of the clients' models,
because the outputs are not linear in the tensors that clients send.

Source: Chen et al., arXiv 2205.13535. The equation, the start and s = 0.1 come from the paper. The
paper uses h = 64 for a model of width 768, which is a twelfth of the width; for the bundled model
of width 96, a twelfth is h = 8. In this module the bottleneck reads the normalised tokens, as the
equation says.

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
class AdaptFormer(ModulePart):
    """The part of a fine-tuning method that adds a bottleneck beside every MLP.

    Attributes:
        bottleneck: The number h of channels inside the bottleneck.
        scale: The factor s of the bottleneck's output.
    """

    cannot_merge = "its bottleneck beside the MLP is not linear"

    bottleneck: int = setting(8, "Number of channels inside a bottleneck.", "[1, inf)")
    scale: float = setting(0.1, "Factor of the bottleneck's output.", "(0, inf)")

    def attach(self, model: nn.Module) -> None:
        """Adds a bottleneck beside the MLP of every block."""
        for block in targets.blocks_of(model):
            mlp, proj = parts_of_block(block, "mlp", "attn.proj")
            width = pretrained(proj).out_features
            made = Bottleneck(self, width, self.bottleneck, activation=F.relu, scale=self.scale)
            block.add_module("adaptformer", made)
            mlp.register_forward_hook(made.beside)
