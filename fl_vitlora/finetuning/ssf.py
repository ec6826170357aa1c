"""SSF: trained scales and shifts after every operation of a ViT.

    y' = γ∘y + β,    y the output of an operation, (B, T, m)

An operation is the patch embedding, a normalisation, or a linear layer of a block (`qkv`, `proj`,
`fc1`, `fc2`). At the start γ = 1 and β = 0. After training, the scales and shifts are merged into
the operation: W' = diag(γ)·W, b' = γ∘b + β. A client sends 22·D numbers for each block of width D
whose MLP has the width 4·D. For the patch embedding and for the last normalisation, a client sends
2·D numbers each.

The mean of the clients' tensors gives exactly the mean of their weights, because W' and b' are
linear in γ and β. If another part of the method trains W or b, the mean is not exact.

In a sum of parts, write `ssf` after the parts that change weights, as in ``lora+ssf``: SSF then
scales the outputs of the adapted layers. The scales and shifts act on channels, not on pixels or
positions. Therefore the scales and shifts do not depend on the key of encrypted images.

Source: Lian et al., arXiv 2210.08823. The equation and the places come from the paper. The paper
draws γ near 1 and β near 0; in this module γ starts at exactly 1 and β at exactly 0. Weight decay
would pull γ towards 0, so weight decay should be off.

Letters in shapes: B batch, T tokens, m outputs of an operation, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.own_modules import (
    ModulePart,
    OwnModule,
    check_bias,
    parts_of_block,
    plain,
    pretrained,
)

IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
AT_END = ("norm", "fc_norm")  # a ViT normalises either before or after pooling the tokens
EMBEDDING, EMBEDDED = "patch_embed.proj", "patch_embed.norm"  # timm's `norm` comes after `proj`
KERNEL_PER_PATCH = 3  # if each patch has its own kernel, kernels have three dimensions


class ScaleShift(OwnModule):
    """An operation whose outputs are scaled and shifted.

    A model that reads the attribute ``weight`` of a layer directly would ignore the method. Like
    `LoRALinear`, this class has no attribute ``weight``, so that such a model raises an error.

    Args:
        owner: The part that adds this module.
        base: The operation whose outputs are scaled and shifted.
        outputs: The number m of channels of the operation's outputs.

    Attributes:
        scale: The scales γ, (m,), one.
        shift: The shifts β, (m,), zero.
    """

    def __init__(self, owner: SSF, base: nn.Module, outputs: int) -> None:
        super().__init__(owner)
        self.base = base
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns γ∘y + β for the outputs y of the operation, (B, ..., m)."""
        y: Tensor = self.base(x)
        scale, shift = (self.for_each_image(v, len(y)) for v in (self.scale, self.shift))
        if scale.ndim > y.ndim:  # the tokens were pooled: y is (B, m)
            scale, shift = scale.squeeze(1), shift.squeeze(1)
        return y * scale + shift

    def merged(self) -> Any:
        """Returns the operation with the scales and shifts in its weight and bias."""
        layer = plain(self.base)
        self.fold(layer)
        return layer

    @torch.no_grad()
    def fold(self, layer: Any) -> None:
        """Changes a layer in place, so that its outputs are multiplied by γ and shifted by β.

        Args:
            layer: A layer with a weight and a bias, such as a linear layer, a normalisation or a
                patch embedding.
        """
        weight: Tensor = layer.weight
        after = 1 if weight.ndim == KERNEL_PER_PATCH else weight.ndim - 1
        weight.mul_(self.scale.reshape(-1, *[1] * after))
        layer.bias.mul_(self.scale).add_(self.shift)


@dataclass(frozen=True, kw_only=True)
class SSF(ModulePart):
    """The part of a fine-tuning method that scales and shifts the outputs of every operation."""

    multiplies = True

    def attach(self, model: nn.Module) -> None:
        """Puts scales and shifts after every operation of a ViT."""
        embedding = parts_of_block(model, EMBEDDING)[0]
        check_bias(embedding, EMBEDDING)
        self._put(model, EMBEDDED, len(embedding.bias))
        for block in targets.blocks_of(model):
            for path in IN_BLOCK:
                self._put(block, path)
        for path in AT_END:
            if not isinstance(getattr(model, path, nn.Identity()), nn.Identity):
                self._put(model, path)

    def averages_exactly(self) -> bool:
        """Returns True, because every merged weight is linear in its scales and shifts."""
        return True

    def _put(self, root: nn.Module, path: str, outputs: int | None = None) -> None:
        """Puts scales and shifts after the module at a dotted path, in place."""
        base = parts_of_block(root, path)[0]
        if outputs is None:
            check_bias(base, path)
            outputs = len(pretrained(base).bias)
        targets.put_module(root, path, ScaleShift(self, base, outputs))

    def merge(self, model: nn.Module) -> None:
        """Merges the scales and shifts into the weights and biases of their operations."""
        embedded: Any = model.get_submodule(EMBEDDED)
        if isinstance(embedded.base, nn.Identity):
            embedded.fold(model.get_submodule(EMBEDDING))
            targets.put_module(model, EMBEDDED, embedded.base)
        for path, module in list(model.named_modules()):
            if isinstance(module, ScaleShift) and module.owner == self:
                targets.put_module(model, path, module.merged())
