"""Pixel shuffling: the entries within a block change places, X' = X[:, key].

The key is one permutation of the D entries (colour channels included), shared by all blocks; there
are D! keys.
Source: the encryption of images for vision transformers in arXiv 2309.02556 and 2507.11943.

B images, N blocks, D entries a block.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.encryption.stream import KeyStream, permutation_bits


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws the permutation of entries (D,)."""
    return stream.restricted_permutation(geometry.entries, geometry.fixed_entries)


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Shuffles (B, N, D): entry j of every block receives entry key[j]."""
    return x[..., key]


def adapt(reader: Reader, key: Tensor) -> Reader:
    """Lets a model read shuffled blocks: every column of the patch embedding follows its entry."""
    return replace(reader, weight=reader.weight[:, key])


def key_space_bits(geometry: Geometry) -> float:
    """Counts log₂(D!), or log₂(D! / N_ps!) where some entries stay.

    Example:
        >>> round(key_space_bits(Geometry(blocks=16, channels=3, block_size=4)), 1)
        202.9
    """
    return permutation_bits(geometry.entries, geometry.fixed_entries)
