"""Packs small numbers: every number takes as many bits as the largest possible number needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]


def width(size: int) -> int:
    """Returns the number of bits that one of `size` symbols needs.

    Example:
        >>> width(2), width(15), width(256)
        (1, 4, 8)
    """
    return (size - 1).bit_length()


def packed_bytes(n: int, bits: int) -> int:
    """Returns the number of bytes for n numbers of `bits` bits each, rounded up."""
    return -(-n * bits // 8)


def pack(numbers: Symbols, bits: int) -> bytes:
    """Writes numbers of `bits` bits each, highest bit first; zeros fill up the last byte.

    Args:
        numbers: The numbers (n,), each below 2^bits.
        bits: The width of a number, from 0 to 8 bits.

    Returns:
        The packed numbers, n·bits / 8 bytes (rounded up).

    Example:
        >>> pack(np.uint8([1, 2, 3]), 4).hex()
        '1230'
    """
    return np.packbits(np.unpackbits(numbers[:, None], axis=1)[:, 8 - bits :]).tobytes()


def unpack(data: bytes, n: int, bits: int) -> Symbols:
    """Reads the numbers that `pack` wrote.

    Args:
        data: The bytes; their number must be `packed_bytes(n, bits)`.
        n: The number of packed numbers.
        bits: The width of a number, from 0 to 8 bits.

    Returns:
        The unpacked numbers (n,).

    Raises:
        ValueError: If the last byte is not filled up with zeros.

    Example:
        >>> unpack(bytes.fromhex("1230"), 3, 4).tolist()
        [1, 2, 3]
    """
    every = np.unpackbits(np.frombuffer(data, np.uint8))
    if every[n * bits :].any():
        raise ValueError("the bits after the last number must be zeros")
    padded = np.zeros((n, 8), np.uint8)
    padded[:, 8 - bits :] = every[: n * bits].reshape(n, bits)
    return np.packbits(padded, axis=1)[:, 0]
