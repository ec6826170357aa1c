"""RepAdapter: linear bottlenecks before attention and MLP, which can be merged into the layers.

    x' = x + s · (U·(A·x + a) + u),    x the normalised input of the attention, or of the MLP

U has g groups: U is block-diagonal and has D·h/g numbers. There is no nonlinearity between x' and
the next linear layer, `qkv` or `fc1`, so the bottleneck can be merged into this layer:

    W' = W·(I + s·U·A),    b' = b + s·W·(U·a + u)

At the start the last matrix U and the last shift u are zero. Therefore x' = x. For each block, a
client sends 2·(D·h + D·h/g + h + D) numbers.

The mean of the clients' tensors does not give the mean of their weights, because U and A are
multiplied.

Source: Luo et al., arXiv 2302.08106. The equation, the places, the groups, the start, h = 8 and
g = 2 come from the paper. A is drawn from Xavier's uniform distribution. The paper searches for the
best s for each data set; the default of this module is s = 1.

Letters in shapes: D width, h channels inside the bottleneck, g groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.bottleneck import Bottleneck
from fl_vitlora.finetuning.own_modules import (
    ModulePart,
    check_bias,
    parts_of_block,
    pretrained,
    put_plain,
)

PLACES = {"repadapter_attn": ("attn", "attn.qkv"), "repadapter_mlp": ("mlp", "mlp.fc1")}


class LinearBottleneck(Bottleneck):
    """A linear bottleneck before a module; this bottleneck can be removed again.

    Args:
        owner: The part that adds the bottleneck.
        width: The number D of inputs and of outputs.
        module: The module whose input changes.
    """

    def __init__(self, owner: RepAdapter, width: int, module: nn.Module) -> None:
        super().__init__(
            owner, width, owner.bottleneck, scale=owner.scale, groups=owner.adapter_groups
        )
        nn.init.xavier_uniform_(self.down)
        self.hook = module.register_forward_pre_hook(self.before)


@dataclass(frozen=True, kw_only=True)
class RepAdapter(ModulePart):
    """The part of a fine-tuning method that adds linear bottlenecks before attention and MLP.

    Attributes:
        bottleneck: The number h of channels inside a bottleneck.
        adapter_groups: The number g of groups of U.
        scale: The factor s of the bottleneck's output.
    """

    bottleneck: int = setting(8, "Number of channels inside a bottleneck.", "[1, inf)")
    adapter_groups: int = setting(2, "Number of groups of the matrix U.", "[1, inf)")
    scale: float = setting(1.0, "Factor of the bottleneck's outputs.", "(0, inf)")

    def attach(self, model: nn.Module) -> None:
        """Adds a bottleneck before the attention and before the MLP of every block."""
        for block in targets.blocks_of(model):
            for name, paths in PLACES.items():
                module, layer = parts_of_block(block, *paths)
                check_bias(layer, paths[1])
                width = pretrained(layer).in_features
                block.add_module(name, LinearBottleneck(self, width, module))

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Multiplies I + s·U·A into the layers `qkv` and `fc1`, and removes the bottlenecks."""
        for block in targets.blocks_of(model):
            for name, (_, path) in PLACES.items():
                added, layer = getattr(block, name), put_plain(block, path)
                matrix, shift = added.matrix()
                layer.bias.add_(layer.weight @ shift)
                layer.weight.add_(layer.weight @ matrix)
                added.hook.remove()
                delattr(block, name)
