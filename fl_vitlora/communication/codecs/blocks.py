"""Blocks of scalars with one scale each: neighbours share their order of magnitude.

Scales are bfloat16: the upper bytes of all of them, then the lower bytes, each entropy-coded. Most
of a scale's upper byte is exponent, alike in all blocks, so a scale costs 10 to 12 bits, not 16.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.communication.codecs.bfloat16 import LARGEST, Halves
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols

MOST_FLOAT32 = np.finfo(np.float32).max


def in_blocks(values: Floats, block: int) -> Floats:
    """Cuts a vector into blocks, the last one filled up with zeros.

    Args:
        values: (n,), n > 0.
        block: Scalars of a block; at most n are taken.

    Returns:
        A copy, (m, block).

    Example:
        >>> in_blocks(np.float32([1, 2, 3]), 2).tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    block = min(block, len(values))
    count = blocks_of(len(values), block)
    padded = np.zeros(count * block, np.float32)
    padded[: len(values)] = values
    return padded.reshape(count, block)


def blocks_of(n: int, block: int) -> int:
    """Counts the blocks m of n scalars."""
    return -(-n // block)


def spread(scales: Floats, block: int, n: int) -> Floats:
    """Repeats the scale of each block for all its scalars.

    Args:
        scales: (m,).
        block: Scalars of a block.
        n: Scalars in all.

    Returns:
        (n,).
    """
    return np.repeat(scales, min(block, n))[:n]


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
        lengths: Floats = np.minimum(largest * np.sqrt(squares), MOST_FLOAT32)
    return lengths


def write_scales(scales: Halves) -> bytes:
    """Writes the scales of all blocks.

    Args:
        scales: (m,), the upper halves of numbers that are finite and not negative.

    Returns:
        The bytes.
    """
    upper, lower = (scales >> 8).astype(np.uint8), (scales & 0xFF).astype(np.uint8)
    return write_symbols(upper, 128) + write_symbols(lower, 256)


def read_scales(reader: ByteReader, count: int) -> Halves:
    """Reads what `write_scales` wrote.

    Args:
        reader: Stands before the scales; afterwards behind them.
        count: The number m of blocks.

    Returns:
        bfloat16 (m,), finite and not negative.

    Raises:
        ValueError: When the bytes are anything else.
    """
    upper = read_symbols(reader, count, 128).astype(np.uint16)
    lower = read_symbols(reader, count, 256)
    scales: Halves = np.left_shift(upper, 8, dtype=np.uint16) | lower
    if scales.max() > LARGEST:
        raise ValueError("a scale is not finite")
    return scales
