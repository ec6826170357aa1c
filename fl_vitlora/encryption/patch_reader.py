"""The two matrices with which a ViT reads patches; key adaptation changes both matrices.

N patches, D = C·p² entries a patch, W width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PatchReader:
    """The patch embedding and the position embedding of a ViT.

    Token i is  weight · xᵢ + bias + positionᵢ  for a patch xᵢ of pixels in [-1, 1]. If a pixel q is
    inverted to 255 - q, its value in [-1, 1] is multiplied by -1. So no key changes the bias.

    Attributes:
        weight: The patch embedding, (W, D), whose columns are in the order (channel, y, x); or (N,
            W, D) if every patch has its own kernel.
        position: The position embedding (N, W) of the patches, or None if the model does not add
            positions to tokens.
    """

    weight: Tensor
    position: Tensor | None

    def with_weight(self, weight: Tensor) -> PatchReader:
        """Returns a copy with another patch embedding."""
        return replace(self, weight=weight)

    def weight_of_blocks(self, blocks: int) -> Tensor:
        """Returns a kernel (N, W, D) for every patch; a shared kernel is repeated."""
        return self.weight if self.weight.ndim == 3 else self.weight.expand(blocks, -1, -1)
