"""The codec sign, which writes one bit per scalar and the mean magnitude of each block.

    Q(x) = ‖x‖₁ / b · sign(x)        for a block of b scalars; zero counts as positive

The error of a single round is large. Without error feedback, the direction of the updates may
remain wrong forever.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
arXiv 1901.09847.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16
from fl_vitlora.communication.codecs.arguments import BLOCK
from fl_vitlora.communication.codecs.blocks import in_blocks, spread
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.quantiser import Quantised, Quantiser


def mean_magnitudes(values: Floats, block: int) -> Floats:
    """Computes the mean magnitude of the scalars of each block.

    Args:
        values: The vector (n,), n > 0.
        block: The number of scalars of a block; the last block may have fewer.

    Returns:
        The mean magnitude of each block (m,).

    Example:
        >>> mean_magnitudes(np.float32([1, -3, 5]), 2).tolist()
        [2.0, 5.0]
    """
    blocks = np.abs(in_blocks(values, block))
    blocks /= np.float32(blocks.shape[1])  # dividing first avoids an overflow of the sum
    last = len(values) - blocks.shape[1] * (len(blocks) - 1)
    with np.errstate(over="ignore"):  # rounding may exceed the range
        means: Floats = blocks.sum(axis=1)
        means[-1] *= np.float32(blocks.shape[1] / last)
    return means


@dataclass(frozen=True, kw_only=True)
class Sign(Quantiser):
    """A quantiser that keeps the sign of each scalar and the mean magnitude of each block.

    Attributes:
        block: The number of scalars that share a magnitude.
    """

    block: int = field(default=256, metadata=BLOCK)
    name: ClassVar[str] = "sign"
    example: ClassVar[str] = "sign(block=256)"

    @property
    def symbols(self) -> int:
        """Returns the number of different symbols: one for plus and one for minus."""
        return 2

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Computes the signs of all scalars and the magnitudes of all blocks."""
        scales = bfloat16.nearest(mean_magnitudes(values, self.block))
        return Quantised(scales=scales, symbols=(values >= 0).astype(np.uint8))

    def restore(self, quantised: Quantised) -> Floats:
        """Multiplies each sign by the magnitude of its block."""
        symbols, scales = quantised.symbols, bfloat16.widened(quantised.scales)
        magnitudes = spread(scales, self.block, len(symbols))
        return np.where(symbols, magnitudes, -magnitudes)
