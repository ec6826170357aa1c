"""Random draws from a cryptographic key stream, with equal probability for all results.

ChaCha20 (RFC 8439) with a 256-bit key generates the bytes. Rejection sampling makes the
probabilities equal. The same key gives the same draws on every machine.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

WORD_BYTES = 4
WORDS = 2 ** (8 * WORD_BYTES)


class KeyStream:
    """A sequence of random numbers that only the same key can produce again.

    Args:
        key: The key of 32 bytes, which determines all numbers of the sequence.

    Example:
        >>> KeyStream(bytes(32)).permutation(4).tolist()
        [1, 3, 0, 2]
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def below(self, bound: int) -> int:
        """Draws a whole number in [0, bound) with equal probabilities; `bound` is at most 2³²."""
        return int(self._below(np.array([bound]))[0])

    def numbers(self, bound: int, count: int) -> Tensor:
        """Draws `count` whole numbers in [0, bound), one after the other, int64 (count,)."""
        return torch.from_numpy(self._below(np.full(count, bound)))

    def permutation(self, length: int) -> Tensor:
        """Draws a permutation of 0 … length-1 with the Fisher-Yates shuffle; int64 (length,)."""
        return self.permutations(1, length)[0]

    def permutations(self, count: int, length: int) -> Tensor:
        """Draws permutations of 0 … length-1 one after the other, int64 (count, length).

        If there are many permutations, they are shuffled in parallel, otherwise one by one.
        Shuffling in parallel gives the same result as shuffling one by one.
        """
        places = np.arange(length - 1, 0, -1)
        chosen = self._below(np.tile(places + 1, count)).reshape(count, len(places))
        if count < length:
            return torch.tensor([_shuffled(length, one) for one in chosen.tolist()]).view(count, -1)
        orders, rows = np.tile(np.arange(length), (count, 1)), np.arange(count)
        for last, drawn in zip(places, chosen.T, strict=True):
            swapped = orders[rows, drawn]
            orders[rows, drawn] = orders[:, last]
            orders[:, last] = swapped
        return torch.from_numpy(orders)

    def restricted_permutation(self, length: int, fixed: int) -> Tensor:
        """Draws a permutation that does not move the entries at ``fixed`` randomly drawn places.

        All other entries are permuted at random, so some of them may also keep their place by
        chance.
        """
        if not fixed:
            return self.permutation(length)
        free = self.permutation(length)[fixed:].sort().values
        order = torch.arange(length)
        order[free] = free[self.permutation(len(free))]
        return order

    def bits(self, length: int) -> Tensor:
        """Draws ``length`` independent bits, each True with probability 1/2; bool (length,)."""
        drawn = np.frombuffer(self._cipher.update(bytes((length + 7) // 8)), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(drawn, count=length, bitorder="little").astype(bool))

    def words(self, count: int) -> NDArray[np.uint32]:
        """Returns the next `count` words, whole numbers in [0, 2³²), uint32 (count,)."""
        drawn = self._cipher.update(bytes(WORD_BYTES * count))
        return np.frombuffer(drawn, dtype="<u4").astype(np.uint32, copy=False)

    def normals(self, count: int) -> NDArray[np.float64]:
        """Draws independent standard normal numbers between -8.6 and 8.6, float64 (count,).

        Two numbers u, v of 53 bits in (0, 1] give the two numbers √(-2 ln u) · cos 2πv and √(-2 ln
        u) · sin 2πv (Box and Muller, 1958). On different machines only the last bits of a result
        may differ, because machines round logarithms differently.
        """
        pairs = (count + 1) // 2
        drawn = np.frombuffer(self._cipher.update(bytes(4 * WORD_BYTES * pairs)), dtype="<u8")
        u, v = ((drawn >> np.uint64(11)) + 1.0).reshape(2, pairs) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
        normal: NDArray[np.float64] = radius * np.stack([np.cos(angle), np.sin(angle)])
        return normal.reshape(-1)[:count]

    def _below(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draws one number below each bound, in the order of the bounds.

        If a word (32 bits) of the stream would make small numbers more probable, the word is
        skipped and the next word is used.
        """
        words = self.words(len(bounds)).astype(np.int64)
        limits = WORDS - WORDS % bounds
        if (words < limits).all():
            return words % bounds
        stream = itertools.chain(words.tolist(), (int(self.words(1)[0]) for _ in itertools.count()))
        accepted = [
            next(word for word in stream if word < limit) % bound
            for bound, limit in zip(bounds.tolist(), limits.tolist(), strict=True)
        ]
        return np.array(accepted, dtype=np.int64)


def _shuffled(length: int, chosen: list[int]) -> list[int]:
    """Shuffles 0 … length-1: swaps each entry, from the last to the first, with a chosen entry."""
    order = list(range(length))
    for last, drawn in zip(range(length - 1, 0, -1), chosen, strict=True):
        order[last], order[drawn] = order[drawn], order[last]
    return order


def permutation_bits(length: int, fixed: int = 0) -> float:
    """Returns log₂(n! / f!) for n = `length` and f = `fixed`.

    There are at most n! / f! permutations of n entries in which f entries keep their place.

    Example:
        >>> round(permutation_bits(196), 1), permutation_bits(4, fixed=4)
        (1214.8, 0.0)
    """
    return (math.lgamma(length + 1) - math.lgamma(fixed + 1)) / math.log(2)
