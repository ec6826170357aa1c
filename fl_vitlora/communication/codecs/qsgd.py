"""QSGD: stochastic levels between zero and the norm of a block, most of which are then zero.

With s levels and the norm ‖x‖ of the block, rounded up to a bfloat16,

    Q(x) = ‖x‖ · sign(x) · ξ / s        ξ = ⌊s·|x| / ‖x‖⌋, or one more with the chance of the rest

so that E Q(x) = x. Levels near zero are by far the most frequent, which entropy coding makes use of
(the paper's own code for them is Elias').

Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
arXiv 1610.02132.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16, levels
from fl_vitlora.communication.codecs.arguments import BLOCK, LEVELS
from fl_vitlora.communication.codecs.blocks import blocks_of, in_blocks, read_scales, write_scales
from fl_vitlora.communication.codecs.codec import Codec, Floats, Shapes, scalars
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols
from fl_vitlora.communication.codecs.reader import Reader

LARGEST = np.finfo(np.float32).max


def norms(blocks: Floats) -> Floats:
    """Computes the Euclidean norm of each block, whatever its magnitude.

    Args:
        blocks: (m, block).

    Returns:
        (m,), at most the largest float32.

    Example:
        >>> [f"{norm:.3g}" for norm in norms(np.float32([[3e30, 4e30], [0, 0]]))]
        ['5e+30', '0']
    """
    largest = np.abs(blocks).max(axis=1)
    scaled = blocks / np.where(largest > 0, largest, np.float32(1))[:, None]
    squares = np.einsum("ij,ij->i", scaled, scaled)
    with np.errstate(over="ignore"):
        lengths: Floats = np.minimum(largest * np.sqrt(squares), LARGEST)
    return lengths


@dataclass(frozen=True, kw_only=True)
class QSGD(Codec):
    """Stochastic levels relative to the norm.

    Attributes:
        levels: s, above zero and as many below.
        block: Scalars that share a norm.
    """

    levels: int = field(default=15, metadata=LEVELS)
    block: int = field(default=128, metadata=BLOCK)
    name: ClassVar[str] = "qsgd"
    example: ClassVar[str] = "qsgd(levels=15,block=128)"

    @property
    def contracts(self) -> bool:
        """Tells whether s² exceeds the block: the paper bounds the variance by block / s²."""
        return self.levels**2 > self.block

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes the norms, then the levels."""
        blocks = in_blocks(values, self.block)
        scales = bfloat16.upward(norms(blocks))
        symbols = levels.to_symbols(blocks, bfloat16.widened(scales), self.levels, draw)
        return write_scales(scales) + write_symbols(symbols[: len(values)], 2 * self.levels + 1)

    def read(self, reader: Reader, shapes: Shapes) -> Floats:
        """Reads the norms, then the levels."""
        n = scalars(shapes)
        scales = read_scales(reader, blocks_of(n, self.block))
        symbols = read_symbols(reader, n, 2 * self.levels + 1)
        return levels.to_values(symbols, scales, self.levels, self.block)
