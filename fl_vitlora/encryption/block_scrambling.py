"""Block scrambling: the blocks of an image change places, X' = X[key].

The key is one permutation of the N block positions; all images of the key share it. N! keys.
Source: the encryption of images for vision transformers in arXiv 2309.02556 and 2507.11943.

B images, N blocks, D entries a block.
"""

from __future__ import annotations

import math

from torch import Tensor

from fl_vitlora.encryption.stream import KeyStream


def draw_key(stream: KeyStream, blocks: int, length: int) -> Tensor:
    """Draws the permutation of positions (N,)."""
    del length
    return stream.permutation(blocks)


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Scrambles (B, N, D): position i receives block key[i]."""
    return x[:, key]


def decrypt(x: Tensor, key: Tensor) -> Tensor:
    """Returns every block to its place."""
    return x[:, key.argsort()]


def key_space_bits(blocks: int, length: int) -> float:
    """Counts log₂(N!).

    Example:
        >>> round(key_space_bits(196, 768), 1)
        1214.8
    """
    del length
    return math.lgamma(blocks + 1) / math.log(2)
