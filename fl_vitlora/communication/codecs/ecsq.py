"""Entropy-coded scalar quantisation (ecsq) with a step relative to a block's root mean square.

    q = round(x / Δ)  within ±7,  Δ = step · rms        Q(x) = sign(q) · (|q| - δ) · Δ

A scalar x is rounded to the level q, in steps of Δ. The step depends on the root mean square (rms)
of the block, not on the largest scalar, so long blocks lose little accuracy. Of the scalars that
are rounded to one level, more are below the level than above. The shortfall δ of a level is its
distance from the mean of the scalars that are rounded to it. The levels ±1 share one shortfall δ.
The levels ±2 to ±7 share another one, which is measured on the levels ±2 to ±6. Scalars beyond the
last level are clipped; error feedback sends the clipped rest in later rounds.

Sources: Gish, Pierce, "Asymptotically Efficient Quantizing", IEEE Trans. Inf. Theory 14 (1968), for
equal steps with entropy coding; Lloyd, "Least Squares Quantization in PCM", IEEE Trans. Inf. Theory
28 (1982), for means as values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs import bfloat16, levels
from fl_vitlora.communication.codecs.arguments import BLOCK, STEP
from fl_vitlora.communication.codecs.bits import Symbols
from fl_vitlora.communication.codecs.blocks import MOST_FLOAT32, in_blocks, norms, spread
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.quantiser import Quantised, Quantiser

LEVELS = 7  # levels on each side of zero
FINE = 510  # a shortfall is written as one byte, in units of 1/510 of a step: at most half a step
FIRST, BEYOND = slice(1, 2), slice(2, LEVELS)  # the levels that share a shortfall


def mean_squares(values: Floats, block: int) -> Floats:
    """Computes the root mean square of the scalars of each block.

    Args:
        values: The vector (n,), n > 0.
        block: The number of scalars of a block; the last block may have fewer.

    Returns:
        The root mean square of each block (m,).

    Example:
        >>> mean_squares(np.float32([3, -3, 3, 3, 5]), 4).tolist()
        [3.0, 5.0]
    """
    blocks = in_blocks(values, block)
    counts = np.full(len(blocks), blocks.shape[1], np.float32)
    counts[-1] = len(values) - blocks.shape[1] * (len(blocks) - 1)
    found = norms(blocks) / np.sqrt(counts)
    return found.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class EntropyCoded(Quantiser):
    """A quantiser with equal steps and entropy coding.

    Attributes:
        step: The step as a multiple of the root mean square. With a step below 2, every block has a
            scalar that does not round to zero. A step must be below 1.98: the distance to 2 is a
            margin for rounding errors.
        block: The number of scalars that share a root mean square.

    Example:
        >>> str(EntropyCoded(step=0.5))
        'ecsq(0.5)'
    """

    step: float = field(default=1.0, metadata=STEP)
    block: int = field(default=1024, metadata=BLOCK)
    name: ClassVar[str] = "ecsq"
    example: ClassVar[str] = "ecsq(step=1.0,block=1024)"

    more_bytes: ClassVar[int] = 2

    @property
    def symbols(self) -> int:
        """Returns the number of levels, including zero."""
        return 2 * LEVELS + 1

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Rounds each scalar to a whole number of steps, and finds the shortfalls of the levels."""
        with np.errstate(over="ignore"):
            largest = mean_squares(values, self.block) * np.float32(self.step * LEVELS)
        scales = bfloat16.upward(np.minimum(largest, MOST_FLOAT32))
        blocks, wide = in_blocks(values, self.block), bfloat16.widened(scales)
        symbols = levels.to_symbols(blocks, wide, LEVELS, None)[: len(values)]
        more = shortfall(values, symbols, wide, self.block)
        return Quantised(scales=scales, symbols=symbols, more=more)

    def restore(self, quantised: Quantised) -> Floats:
        """Returns the scalars that the symbols stand for."""
        first, beyond = np.frombuffer(quantised.more, np.uint8).astype(np.float32) / FINE
        short = np.full(LEVELS + 1, beyond, np.float32)
        short[:2] = 0, first
        steps = np.arange(LEVELS + 1, dtype=np.float32) - short
        table = np.concatenate([-steps[:0:-1], steps])
        values: Floats = table[quantised.symbols]
        units = bfloat16.widened(quantised.scales) / np.float32(LEVELS)
        values *= spread(units, self.block, len(values))
        return values


def shortfall(values: Floats, symbols: Symbols, scales: Floats, block: int) -> bytes:
    """Computes how far, on average, scalars are below the level to which they are rounded.

    Args:
        values: The vector (n,).
        symbols: The level of each scalar plus 7, (n,).
        scales: The magnitude of the last level of each block (m,).
        block: The number of scalars that share a scale.

    Returns:
        Two bytes, in units of 1/510 of a step: the shortfall of the first level, and the shortfall
        of the levels between the first and the last.
    """
    sizes = np.abs(symbols.astype(np.int8) - np.int8(LEVELS))
    units = np.where(scales > 0, scales, np.float32(1)) / np.float32(LEVELS)
    short = sizes - np.abs(values) / spread(units.astype(np.float32), block, len(values))
    sums = np.bincount(sizes, weights=short, minlength=LEVELS + 1)
    counts = np.bincount(sizes, minlength=LEVELS + 1)
    means = (float(sums[of].sum() / max(1, counts[of].sum())) for of in (FIRST, BEYOND))
    return bytes(round(min(max(mean, 0.0), 0.5) * FINE) for mean in means)
