"""Entropy-coded scalar quantisation: whole multiples of a share of the root mean square of a block.

    q = round(x / Δ)  within ±7,  Δ = step · rms        Q(x) = sign(q) · (|q| - δ) · Δ

The step follows what most scalars are like, not the largest, so that long blocks lose little. A
level stands for all that was rounded to it, of which there is more below than above: δ, one for the
first level and one for all beyond it, is what the mean of those falls short of it. What lies beyond
the last level is cut, and with error feedback comes later.

Sources: Gish, Pierce, "Asymptotically Efficient Quantizing", IEEE Trans. Inf. Theory 14 (1968), for
equal steps with entropy coding; Lloyd, "Least Squares Quantization in PCM", the same 28 (1982), for
means as values.
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

LEVELS = 7  # on each side of zero
FINE = 510  # parts of a step that a byte counts, up to half of it
FIRST, BEYOND = slice(1, 2), slice(2, LEVELS)  # the levels that share a shortfall


def mean_squares(values: Floats, block: int) -> Floats:
    """Computes the root mean square of each block, over the scalars that it has.

    Args:
        values: (n,), n > 0.
        block: Scalars of a block; the last one may have fewer.

    Returns:
        (m,).

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
    """Equal steps, entropy-coded.

    Attributes:
        step: In root mean squares; below 2, with room for rounding, so that something of every
            block is sent.
        block: Scalars that share a root mean square.

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
        """Counts the levels, zero among them."""
        return 2 * LEVELS + 1

    def quantise(self, values: Floats, draw: np.random.Generator) -> Quantised:
        """Rounds to steps, and finds what levels fall short by."""
        with np.errstate(over="ignore"):
            largest = mean_squares(values, self.block) * np.float32(self.step * LEVELS)
        scales = bfloat16.upward(np.minimum(largest, MOST_FLOAT32))
        blocks, wide = in_blocks(values, self.block), bfloat16.widened(scales)
        symbols = levels.to_symbols(blocks, wide, LEVELS, None)[: len(values)]
        more = shortfall(values, symbols, wide, self.block)
        return Quantised(scales=scales, symbols=symbols, more=more)

    def restore(self, quantised: Quantised) -> Floats:
        """Returns what levels stand for."""
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
    """Finds by how much the scalars of a level fall short of it in the mean, in steps.

    Args:
        values: (n,).
        symbols: Their levels, + 7.
        scales: (m,), of the largest level.
        block: Scalars that share a scale.

    Returns:
        Two bytes, in 1/510 of a step: of the first level, and of those between it and the last.
    """
    sizes = np.abs(symbols.astype(np.int8) - np.int8(LEVELS))
    units = np.where(scales > 0, scales, np.float32(1)) / np.float32(LEVELS)
    short = sizes - np.abs(values) / spread(units.astype(np.float32), block, len(values))
    sums = np.bincount(sizes, weights=short, minlength=LEVELS + 1)
    counts = np.bincount(sizes, minlength=LEVELS + 1)
    means = (float(sums[of].sum() / max(1, counts[of].sum())) for of in (FIRST, BEYOND))
    return bytes(round(min(max(mean, 0.0), 0.5) * FINE) for mean in means)
