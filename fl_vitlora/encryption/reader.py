"""The part of a ViT that reads patches, as three matrices; what key adaptation works on.

N patches, D = C·p² entries a patch, W width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Token i of a ViT is  weight · xᵢ + bias + positionᵢ  for the normalised patch xᵢ.

    Attributes:
        weight: (W, D), the patch embedding; D in the order (channel, y, x).
        bias: (W,).
        position: (N, W), of the patches; none where the model does not add positions to tokens.
        inverse: What NP makes of a normalised pixel: -x + inverse. It is (1 - 2·mean) / std, so 0
            where the mean is 0.5.
    """

    weight: Tensor
    bias: Tensor
    position: Tensor | None
    inverse: float = 0.0
