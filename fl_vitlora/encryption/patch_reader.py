"""The patch embedding and the position embedding of a ViT, which key adaptation changes.

Letters in shapes: N patches, D = C·p² entries a patch, W width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PatchReader:
    """The patch reader: the patch embedding and the position embedding of a ViT.

    Token i is  weight · xᵢ + bias + positionᵢ  for patch i, whose pixels xᵢ are in [-1, 1]. If a
    pixel q is inverted to 255 - q, its value in [-1, 1] is multiplied by -1. A key never changes
    the bias, so the bias is not part of this class.

    Attributes:
        weight: The patch embedding (W, D), or (N, W, D) if every patch has its own kernel. The
            columns of the patch embedding are in the order (channel, y, x).
        position: The position embedding (N, W) of the patches, or None if the model does not add
            position embeddings to its tokens.
    """

    weight: Tensor
    position: Tensor | None

    def with_weight(self, weight: Tensor) -> PatchReader:
        """Returns a copy of this patch reader with another patch embedding."""
        return replace(self, weight=weight)

    def weight_of_blocks(self, blocks: int) -> Tensor:
        """Returns a kernel for every patch, (N, W, D); a shared kernel is repeated."""
        return self.weight if self.weight.ndim == 3 else self.weight.expand(blocks, -1, -1)
