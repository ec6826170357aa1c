"""QSGD: stochastic rounding to levels between zero and a block's norm; most scalars become zero.

With s levels on each side of zero and the norm ‖x‖ of a block x, rounded up to a bfloat16, a scalar
xᵢ of the block becomes

    Q(xᵢ) = ‖x‖ · sign(xᵢ) · ξ / s      ξ = ⌊s·|xᵢ| / ‖x‖⌋, or 1 more

The probability of "1 more" is the remainder of the division, so the mean of Q(xᵢ) is xᵢ.
Levels near zero are by far the most frequent, so entropy coding shortens them (the paper uses Elias
coding instead).

Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
arXiv 1610.02132.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16, levels
from fl_vitlora.communication.codecs.arguments import BLOCK, LEVELS
from fl_vitlora.communication.codecs.blocks import in_blocks, norms
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.quantiser import Quantised, Quantiser


@dataclass(frozen=True, kw_only=True)
class QSGD(Quantiser):
    """A quantiser with stochastic levels relative to the norm of a block.

    Attributes:
        levels: The number s of levels above zero, and of levels below zero.
        block: The number of scalars that share a norm.
    """

    levels: int = field(default=15, metadata=LEVELS)
    block: int = field(default=128, metadata=BLOCK)
    name: ClassVar[str] = "qsgd"
    example: ClassVar[str] = "qsgd(levels=15,block=128)"

    @property
    def contracts(self) -> bool:
        """Returns True if the paper's bound of the error, block / s² of the vector, is below 1."""
        return self.levels**2 > self.block

    @property
    def symbols(self) -> int:
        """Returns the number of levels, including zero."""
        return 2 * self.levels + 1

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Rounds each scalar to a level; the highest level is the norm of the block."""
        blocks = in_blocks(values, self.block)
        scales = bfloat16.upward(norms(blocks))
        symbols = levels.to_symbols(blocks, bfloat16.widened(scales), self.levels, draw)
        return Quantised(scales=scales, symbols=symbols[: len(values)])

    def restore(self, quantised: Quantised) -> Floats:
        """Multiplies each level by the norm of its block."""
        scales = bfloat16.widened(quantised.scales)
        return levels.to_values(quantised.symbols, scales, self.levels, self.block)
