"""The codecs int8, int4, int3 and int2, which round to whole multiples of a step.

The largest magnitude of each block sets the step. With b bits there are L = 2^(b-1) - 1 levels on
each side of zero. The scale of a block is its largest magnitude, rounded up to a bfloat16 so that
no scalar is clipped. int2 is ternary.

Sources: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861 (blocks);
Wen et al., "TernGrad", arXiv 1705.07878 (three levels with stochastic rounding, scaled by the
largest magnitude).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16, levels
from fl_vitlora.communication.codecs.arguments import BLOCK, ROUNDING
from fl_vitlora.communication.codecs.blocks import in_blocks
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.quantiser import Quantised, Quantiser


@dataclass(frozen=True, kw_only=True)
class Absmax(Quantiser):
    """The common base of int8, int4, int3 and int2.

    Attributes:
        block: The number of scalars that share a scale.
        rounding: The kind of rounding. The errors of "stochastic" are zero on average; with
            "nearest", the largest possible error is half as large as with "stochastic".
        levels: The number L of levels on each side of zero.
    """

    block: int = field(default=64, metadata=BLOCK)
    rounding: str = field(default="stochastic", metadata=ROUNDING)
    levels: ClassVar[int]

    @property
    def contracts(self) -> bool:
        """Returns True if the error is smaller than the vector x: nearest rounding, or b < 4·L².

        There are b scalars in a block, and L levels on each side of zero. With stochastic rounding,
        the root mean square error of a scalar is at most half a step, M / 2L, where M is the
        largest magnitude of the block; the largest scalar has no error. So the squared error of a
        block of b scalars is below b·M² / 4L², which is less than M² ≤ ‖x‖².
        """
        return self.rounding == "nearest" or self.block < 4 * self.levels**2

    @property
    def symbols(self) -> int:
        """Returns the number of levels, including zero."""
        return 2 * self.levels + 1

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Rounds each scalar to a level; the highest level is the block's largest magnitude."""
        blocks = in_blocks(values, self.block)
        scales = bfloat16.upward(np.abs(blocks).max(axis=1))
        chance = draw if self.rounding == "stochastic" else None
        symbols = levels.to_symbols(blocks, bfloat16.widened(scales), self.levels, chance)
        return Quantised(scales=scales, symbols=symbols[: len(values)])

    def restore(self, quantised: Quantised) -> Floats:
        """Multiplies each level by the scale of its block."""
        scales = bfloat16.widened(quantised.scales)
        return levels.to_values(quantised.symbols, scales, self.levels, self.block)


@dataclass(frozen=True, kw_only=True)
class Int8(Absmax):
    """A quantiser with 255 levels.

    Example:
        >>> str(Int8(block=128, rounding="nearest"))
        'int8(128,rounding=nearest)'
    """

    name: ClassVar[str] = "int8"
    example: ClassVar[str] = "int8(block=64)"
    fine: ClassVar[bool] = True
    levels: ClassVar[int] = 127


@dataclass(frozen=True, kw_only=True)
class Int4(Absmax):
    """A quantiser with 15 levels."""

    name: ClassVar[str] = "int4"
    example: ClassVar[str] = "int4(block=64)"
    fine: ClassVar[bool] = True
    levels: ClassVar[int] = 7


@dataclass(frozen=True, kw_only=True)
class Int3(Absmax):
    """A quantiser with seven levels."""

    rounding: str = field(default="nearest", metadata=ROUNDING)
    name: ClassVar[str] = "int3"
    example: ClassVar[str] = "int3(block=64)"
    levels: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class Int2(Absmax):
    """A quantiser with three levels.

    By default, blocks of int2 are longer than those of int4, so that fewer scales are sent.

    Without another setting, int2 rounds to the nearest level. With stochastic rounding, as in
    TernGrad, most scalars change by more than their own magnitude. The errors of stochastic
    rounding are zero on average, but with error feedback they can grow from round to round. Because
    such errors can grow, int3 also rounds to the nearest level by default.
    """

    block: int = field(default=128, metadata=BLOCK)
    rounding: str = field(default="nearest", metadata=ROUNDING)
    name: ClassVar[str] = "int2"
    example: ClassVar[str] = "int2(block=128)"
    levels: ClassVar[int] = 1
