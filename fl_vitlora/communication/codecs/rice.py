"""Golomb-Rice coding of the gaps between positions, in which small gaps need few bits.

With the parameter r, a gap is divided by 2^r. The quotient q is written in unary (q zeros and a
one), and the remainder in r bits. The gaps between randomly picked scalars have a geometric
distribution. For such gaps, the code with the best r is within a few percent of the entropy.

    r · 1 byte | number of unary bits | unary bits of all gaps | remainders of all gaps

Sources: Golomb, "Run-length encodings", IEEE Trans. Inf. Theory 12 (1966); Rice and Plaunt,
"Adaptive variable-length coding for efficient compression of spacecraft television data",
IEEE Trans. Commun. Technol. 19 (1971).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.communication.codecs.bits import packed_bytes
from fl_vitlora.communication.codecs.byte_reader import ByteReader, varint

Numbers = NDArray[np.int64]


def write_positions(positions: Numbers) -> bytes:
    """Writes the positions of some scalars of a vector as coded gaps.

    Args:
        positions: The positions (k,), k > 0, ascending and not negative.

    Returns:
        The bytes, which do not contain the number k of positions.

    Example:
        >>> write_positions(np.arange(800)).hex()[:8]
        '00a006ff'
    """
    gaps = np.diff(positions, prepend=-1) - 1
    bits = best_parameter(gaps)
    ends = np.cumsum((gaps >> bits) + 1)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    remainders = (gaps[:, None] >> np.arange(bits)[::-1]) & 1
    return (
        bytes([bits])
        + varint(len(unary))
        + np.packbits(unary).tobytes()
        + np.packbits(remainders.astype(np.uint8)).tobytes()
    )


def read_positions(reader: ByteReader, k: int, n: int) -> Numbers:
    """Reads the positions that `write_positions` wrote.

    Args:
        reader: The reader, at the first byte of the positions. This function moves the reader
            behind the last byte of the positions.
        k: The number of positions, above 0.
        n: The number of scalars of the vector.

    Returns:
        The positions (k,), ascending and below n.

    Raises:
        ValueError: If `write_positions` cannot have written these bytes.
    """
    (bits,) = reader.take(1)
    count = reader.varint()
    if bits > n.bit_length() or count > k + (n >> bits):
        raise ValueError("the gaps between the positions exceed the length of the vector")
    ones = np.flatnonzero(_bits(reader, count))
    if len(ones) != k or ones[-1] != count - 1:
        raise ValueError(
            "the number of positions differs from the number of scalars at these positions"
        )
    places = np.left_shift(np.int64(1), np.arange(bits, dtype=np.int64)[::-1])
    remainders = _bits(reader, k * bits).reshape(k, bits) @ places
    gaps = ((np.diff(ones, prepend=-1) - 1) << bits) + remainders
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= n:
        raise ValueError("a position is beyond the end of the vector")
    return positions


def best_parameter(gaps: Numbers) -> int:
    """Returns the parameter r with which the gaps need the fewest bits.

    Args:
        gaps: The gaps (k,) between neighbouring positions, not negative.

    Returns:
        The parameter r of the code with the fewest bits. If several parameters are equally good,
        the smallest is returned.

    Example:
        >>> best_parameter(np.array([40, 50, 60]))
        5
    """
    choices = range(int(gaps.max()).bit_length() + 1)
    return min(choices, key=lambda bits: len(gaps) * bits + int((gaps >> bits).sum()))


def _bits(reader: ByteReader, count: int) -> NDArray[np.uint8]:
    """Reads `count` bits; the bits that fill up the last byte must be zeros."""
    bits = np.unpackbits(np.frombuffer(reader.take(packed_bytes(count, 1)), np.uint8))
    if bits[count:].any():
        raise ValueError("the bits after the last position must be zeros")
    return bits[:count]
