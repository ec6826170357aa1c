"""nf4: 16 levels that lie as the quantiles of a normal distribution, so that each is used alike.

Eight levels above zero, zero, and seven below it; each is the quantile of one of the equal shares
into which a normal distribution is cut, and the outermost are -1 and 1. A block is scaled by its
largest magnitude, rounded up to a bfloat16; each scalar goes to the nearest level.

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
from fl_vitlora.communication.codecs.blocks import (
    blocks_of,
    in_blocks,
    read_scales,
    spread,
    write_scales,
)
from fl_vitlora.communication.codecs.codec import Codec, Floats, Shapes, scalars
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols
from fl_vitlora.communication.codecs.reader import Reader

ABOVE, BELOW = 8, 7
OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2  # the mean of the last quantiles on both sides


def normal_levels() -> Floats:
    """Computes the levels.

    Returns:
        float32 (16,), ascending from -1 to 1.

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
    """Finds the nearest level of every scalar: as many as there are boundaries below it.

    Args:
        scaled: From -1 to 1.

    Returns:
        From 0 to 15, in the shape of ``scaled``.
    """
    symbols = np.zeros(scaled.shape, np.uint8)
    for boundary in BETWEEN:
        symbols += scaled > boundary
    return symbols


@dataclass(frozen=True, kw_only=True)
class NormalFloat4(Codec):
    """The nearest of 16 normal levels.

    Attributes:
        block: Scalars that share a scale.
    """

    block: int = field(default=64, metadata=BLOCK)
    name: ClassVar[str] = "nf4"
    example: ClassVar[str] = "nf4(block=64)"

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes the scales, then the levels."""
        blocks = in_blocks(values, self.block)
        scales = bfloat16.upward(np.abs(blocks).max(axis=1))
        divisors = bfloat16.widened(np.maximum(scales, 1))  # the least above zero
        symbols = nearest_level((blocks / divisors[:, None]).reshape(-1)[: len(values)])
        return write_scales(scales) + write_symbols(symbols, len(LEVELS))

    def read(self, reader: Reader, shapes: Shapes) -> Floats:
        """Reads the scales, then the levels."""
        n = scalars(shapes)
        scales = read_scales(reader, blocks_of(n, self.block))
        symbols = read_symbols(reader, n, len(LEVELS))
        return LEVELS[symbols] * spread(scales, self.block, n)
