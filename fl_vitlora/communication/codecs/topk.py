"""Top-k: sends only the largest scalars and their positions; all other scalars count as zero.

Of n scalars, k = fraction · n are kept, rounded up. If magnitudes are equal, the scalars with the
lowest positions are kept; zeros are never kept. Positions are written as Golomb-Rice coded gaps.
The inner codec, which follows the "+" in a specification, writes the scalars.

Source: Stich et al., "Sparsified SGD with Memory", arXiv 1809.07599.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_vitlora.communication.codecs.arguments import FRACTION
from fl_vitlora.communication.codecs.byte_reader import ByteReader, varint
from fl_vitlora.communication.codecs.codec import Floats, Shapes, scalars
from fl_vitlora.communication.codecs.rice import Numbers, read_positions, write_positions
from fl_vitlora.communication.codecs.transform import Transform

ROUNDING_ERROR = 1e-9  # in floating point, 0.07 · 100 is a little more than 7


def kept(n: int, fraction: float) -> int:
    """Returns the number k of scalars that are kept, out of n.

    Example:
        >>> kept(100, 0.07), kept(101, 0.07), kept(5, 0.001)
        (7, 8, 1)
    """
    return max(1, math.ceil(fraction * n - ROUNDING_ERROR))


def largest(values: Floats, k: int) -> Numbers:
    """Finds the scalars with the k largest magnitudes.

    Args:
        values: The vector (n,).
        k: The number of scalars to keep, from 1 to n.

    Returns:
        The positions of the k largest scalars, ascending; fewer than k if all other scalars are
        zero.

    Example:
        >>> largest(np.float32([1, -5, 0, 5, 2]), 3).tolist()
        [1, 3, 4]
    """
    magnitudes = np.abs(values)
    least = np.partition(magnitudes, len(values) - k)[len(values) - k]
    if least == 0:
        return np.flatnonzero(magnitudes)
    chosen = magnitudes > least
    equal = np.flatnonzero(magnitudes == least)
    chosen[equal[: k - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


@dataclass(frozen=True, kw_only=True)
class TopK(Transform):
    """A transform that keeps only the largest scalars.

    Attributes:
        fraction: The share k / n of the scalars that are kept.
    """

    fraction: float = field(metadata=FRACTION)
    name: ClassVar[str] = "topk"
    example: ClassVar[str] = "topk(0.05)+int4"

    def write(self, values: Floats, shapes: Shapes, draw: np.random.Generator) -> bytes:
        """Writes the number of kept scalars, their positions, and the scalars."""
        positions = largest(values, kept(len(values), self.fraction))
        if not len(positions):
            return varint(0)
        body = self.inner.encode(values[positions], ((len(positions),),), draw)
        return varint(len(positions)) + write_positions(positions) + body

    def read(self, reader: ByteReader, shapes: Shapes) -> Floats:
        """Reads the kept scalars into a vector of zeros."""
        n = scalars(shapes)
        values = np.zeros(n, np.float32)
        k = reader.varint()
        if k > kept(n, self.fraction):
            raise ValueError(
                f"{k} scalars were kept, expected at most {kept(n, self.fraction)} kept scalars"
            )
        if k:
            positions = read_positions(reader, k, n)
            values[positions] = self.inner.decode(reader.rest(), ((k,),))
        return values
