"""Pixel shuffling: the entries within each block X change places, X' = X[:, key].

The key is one permutation of the D entries (colour channels included). All blocks share one
permutation, or every block has its own permutation (`Geometry.per_block`). There are D! keys, or
(D!)^N if every block has its own permutation. Source: the encryption of images for vision
transformers in arXiv 2309.02556 and 2507.11943.

Letters in shapes: B images, N blocks, D entries a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream, permutation_bits
from fl_vitlora.encryption.steps.entries import inverse_order as inverse
from fl_vitlora.encryption.steps.entries import permute as encrypt
from fl_vitlora.encryption.steps.entries import permute_columns as adapt

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws an order of the D entries, int64 (D,), or (N, D) if every block has its own key."""
    orders = [
        stream.restricted_permutation(geometry.entries, geometry.fixed_entries)
        for _ in range(geometry.keys)
    ]
    return torch.stack(orders).view(geometry.key_shape)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: log₂(D! / N_ps!) for each separate key.

    N_ps is the number of entries that keep their place, `Geometry.fixed_entries`.

    Example:
        >>> round(key_space_bits(Geometry(blocks=16, channels=3, block_size=4)), 1)
        202.9
    """
    return geometry.keys * permutation_bits(geometry.entries, geometry.fixed_entries)
