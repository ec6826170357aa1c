"""The part of a ViT that reads patches, as two matrices; what key adaptation works on.

N patches, D = C·p² entries a patch, W width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PatchReader:
    """Token i of a ViT is  weight · xᵢ + bias + positionᵢ  for a patch xᵢ of pixels in [-1, 1].

    On that interval an inverted pixel is the negative one, so that no key ever touches the bias.

    Attributes:
        weight: (W, D), the patch embedding, D in the order (channel, y, x); or (N, W, D), a kernel
            for every patch.
        position: (N, W), of the patches; none where the model does not add positions to tokens.
    """

    weight: Tensor
    position: Tensor | None

    def with_weight(self, weight: Tensor) -> PatchReader:
        """Returns the reader with another patch embedding."""
        return replace(self, weight=weight)

    def weight_of_blocks(self, blocks: int) -> Tensor:
        """Returns a kernel for every patch, (N, W, D), equal ones where all patches share one."""
        return self.weight if self.weight.ndim == 3 else self.weight.expand(blocks, -1, -1)
