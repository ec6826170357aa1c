"""Signs: one bit a scalar, and the mean magnitude of each block.

    Q(x) = ‖x‖₁ / b · sign(x)        for a block of b scalars; zero counts as positive

It is far off in each round: without error feedback its direction may be wrong for good.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
arXiv 1901.09847.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16
from fl_vitlora.communication.codecs.arguments import BLOCK
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


def mean_magnitudes(values: Floats, block: int) -> Floats:
    """Computes the mean magnitude of each block, over the scalars that it has.

    Args:
        values: (n,), n > 0.
        block: Scalars of a block; the last one may have fewer.

    Returns:
        (m,).

    Example:
        >>> mean_magnitudes(np.float32([1, -3, 5]), 2).tolist()
        [2.0, 5.0]
    """
    blocks = np.abs(in_blocks(values, block))
    blocks /= np.float32(blocks.shape[1])  # first, so that no sum is too large
    last = len(values) - blocks.shape[1] * (len(blocks) - 1)
    with np.errstate(over="ignore"):  # by a rounding error, at the end of the range
        means: Floats = blocks.sum(axis=1)
        means[-1] *= np.float32(blocks.shape[1] / last)
    return means


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """The sign of each scalar, and the mean magnitude of each block.

    Attributes:
        block: Scalars that share a magnitude.
    """

    block: int = field(default=256, metadata=BLOCK)
    name: ClassVar[str] = "sign"
    example: ClassVar[str] = "sign(block=256)"

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes the magnitudes, then the signs."""
        scales = bfloat16.nearest(mean_magnitudes(values, self.block))
        return write_scales(scales) + write_symbols((values >= 0).astype(np.uint8), 2)

    def read(self, reader: Reader, shapes: Shapes) -> Floats:
        """Reads the magnitudes, then the signs."""
        n = scalars(shapes)
        scales = spread(read_scales(reader, blocks_of(n, self.block)), self.block, n)
        return np.where(read_symbols(reader, n, 2), scales, -scales)
