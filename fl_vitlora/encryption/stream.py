"""Unbiased draws from a cryptographic key stream.

ChaCha20 (RFC 8439) under a 256-bit key gives the bytes; rejection makes the draws unbiased. The
same key gives the same draws on every machine.
"""

from __future__ import annotations

import math

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

WORD_BYTES = 4
WORDS = 2 ** (8 * WORD_BYTES)


class KeyStream:
    """A sequence of random numbers that only who knows the key can repeat.

    Args:
        key: 32 bytes.

    Example:
        >>> KeyStream(bytes(32)).permutation(4).tolist()
        [1, 3, 0, 2]
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def below(self, bound: int) -> int:
        """Draws a whole number in [0, bound), each with the same probability; bound <= 2**32."""
        limit = WORDS - WORDS % bound
        while True:
            word = int.from_bytes(self._cipher.update(bytes(WORD_BYTES)), "little")
            if word < limit:
                return word % bound

    def permutation(self, length: int) -> Tensor:
        """Draws a permutation of 0 … length-1, int64 (Fisher and Yates)."""
        order = list(range(length))
        for last in range(length - 1, 0, -1):
            chosen = self.below(last + 1)
            order[last], order[chosen] = order[chosen], order[last]
        return torch.tensor(order, dtype=torch.int64)

    def restricted_permutation(self, length: int, fixed: int) -> Tensor:
        """Draws a permutation of which ``fixed`` places, drawn too, stay as they are.

        The other places are permuted freely, so a few more may stay by chance.
        """
        if not fixed:
            return self.permutation(length)
        free = self.permutation(length)[fixed:].sort().values
        order = torch.arange(length)
        order[free] = free[self.permutation(len(free))]
        return order

    def bits(self, length: int) -> Tensor:
        """Draws ``length`` independent fair bits, bool."""
        drawn = self._cipher.update(bytes((length + 7) // 8))
        return torch.tensor([bool(drawn[i // 8] >> (i % 8) & 1) for i in range(length)])


def permutation_bits(length: int, fixed: int = 0) -> float:
    """Counts restricted permutations, at most n! / f!, as a logarithm to base 2.

    Example:
        >>> round(permutation_bits(196), 1), permutation_bits(4, fixed=4)
        (1214.8, 0.0)
    """
    return (math.lgamma(length + 1) - math.lgamma(fixed + 1)) / math.log(2)
