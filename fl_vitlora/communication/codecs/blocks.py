"""Blocks of scalars: each block has one scale, because neighbours have similar magnitudes.

A scale is a bfloat16 number. The upper bytes of all scales are written first, then the lower bytes;
all are entropy-coded (frequent bytes get fewer bits than rare bytes). The upper byte of a scale
contains most of its exponent, which is similar in all blocks. Therefore the entropy code shortens a
scale from 16 bits to between 10 and 12 bits.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.communication.codecs.bfloat16 import LARGEST, Halves
from fl_vitlora.communication.codecs.byte_reader import ByteReader
from fl_vitlora.communication.codecs.codec import Floats
from fl_vitlora.communication.codecs.entropy import read_symbols, write_symbols

MOST_FLOAT32 = np.finfo(np.float32).max


def in_blocks(values: Floats, block: int) -> Floats:
    """Cuts a vector into blocks; zeros fill up the last block.

    Args:
        values: The vector (n,), n > 0.
        block: The number of scalars of a block; if it is above n, there is one block of n scalars.

    Returns:
        A copy of the scalars as m blocks, (m, block).

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
    """Returns the number m of blocks into which n scalars are cut."""
    return -(-n // block)


def spread(scales: Floats, block: int, n: int) -> Floats:
    """Repeats the scale of each block for all its scalars.

    Args:
        scales: The scales (m,) of the blocks.
        block: The number of scalars of a block.
        n: The number of scalars of the vector.

    Returns:
        The scale of each scalar (n,).
    """
    return np.repeat(scales, min(block, n))[:n]


def norms(blocks: Floats) -> Floats:
    """Computes the Euclidean norm of each block, without overflow at any magnitude.

    Args:
        blocks: The blocks (m, block).

    Returns:
        The norms (m,), at most the largest float32.

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
        scales: The scales (m,) as bfloat16, finite and not negative.

    Returns:
        The bytes, which `read_scales` can read.
    """
    upper, lower = (scales >> 8).astype(np.uint8), (scales & 0xFF).astype(np.uint8)
    return write_symbols(upper, 128) + write_symbols(lower, 256)


def read_scales(reader: ByteReader, count: int) -> Halves:
    """Reads the scales that `write_scales` wrote.

    Args:
        reader: The reader, at the first byte of the scales. This function moves the reader behind
            the last byte of the scales.
        count: The number m of blocks.

    Returns:
        The scales (m,) as bfloat16, finite and not negative.

    Raises:
        ValueError: If `write_scales` cannot have written these bytes.
    """
    upper = read_symbols(reader, count, 128).astype(np.uint16)
    lower = read_symbols(reader, count, 256)
    scales: Halves = np.left_shift(upper, 8, dtype=np.uint16) | lower
    if scales.max() > LARGEST:
        raise ValueError("the scale of a block is not a finite number")
    return scales
