"""nf4: 16 levels at quantiles of a normal distribution, so all levels are used equally often.

There are eight levels above zero, zero itself, and seven levels below it. The levels are the
quantiles of equal shares of a normal distribution, scaled so that the outermost levels are -1 and
1. A block is scaled by its largest magnitude, rounded up to a bfloat16. Each scalar is rounded to
the nearest level.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16
from fl_vitlora.communication.codecs.arguments import BLOCK
from fl_vitlora.communication.codecs.bits import Symbols
from fl_vitlora.communication.codecs.blocks import in_blocks, spread
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.quantiser import Quantised, Quantiser

ABOVE, BELOW = 8, 7
OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2  # the last quantile: the mean for the two sides of zero


def normal_levels() -> Floats:
    """Computes the 16 levels of nf4.

    Returns:
        The levels (16,), float32, ascending from -1 to 1.

    Example:
        >>> [f"{level:.3f}" for level in normal_levels()[[0, 6, 7, 8, 15]]]
        ['-1.000', '-0.091', '0.000', '0.080', '1.000']
    """
    quantile = NormalDist().inv_cdf
    most = quantile(OUTERMOST)

    def side(count: int) -> list[float]:
        shares = np.linspace(0.5, OUTERMOST, count + 1)[1:]
        return [quantile(float(share)) / most for share in shares]

    below = [-level for level in reversed(side(BELOW))]
    return np.array([*below, 0.0, *side(ABOVE)], dtype=np.float32)


LEVELS = normal_levels()
BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2


def nearest_level(scaled: Floats) -> Symbols:
    """Returns the number of the nearest level of every scalar, found by 15 comparisons.

    Args:
        scaled: Numbers from -1 to 1.

    Returns:
        Symbols from 0 to 15, in the shape of ``scaled``.
    """
    symbols = np.zeros(scaled.shape, np.uint8)
    for boundary in BETWEEN:
        symbols += scaled > boundary
    return symbols


@dataclass(frozen=True, kw_only=True)
class NormalFloat4(Quantiser):
    """A quantiser that rounds to the nearest of 16 normal levels.

    Attributes:
        block: The number of scalars that share a scale.
    """

    block: int = field(default=64, metadata=BLOCK)
    name: ClassVar[str] = "nf4"
    example: ClassVar[str] = "nf4(block=64)"
    fine: ClassVar[bool] = True

    @property
    def symbols(self) -> int:
        """Returns the number of levels, 16."""
        return len(LEVELS)

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Finds the nearest level of each scalar."""
        blocks = in_blocks(values, self.block)
        scales = bfloat16.upward(np.abs(blocks).max(axis=1))
        divisors = bfloat16.widened(
            np.maximum(scales, 1)
        )  # a scale of zero is replaced by the smallest positive scale
        symbols = nearest_level((blocks / divisors[:, None]).reshape(-1)[: len(values)])
        return Quantised(scales=scales, symbols=symbols)

    def restore(self, quantised: Quantised) -> Floats:
        """Multiplies each level by the scale of its block."""
        symbols, scales = quantised.symbols, bfloat16.widened(quantised.scales)
        return LEVELS[symbols] * spread(scales, self.block, len(symbols))
