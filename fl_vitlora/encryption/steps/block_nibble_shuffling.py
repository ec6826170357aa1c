"""Nibble shuffling with a separate key for every block, as in extended learnable encryption (ELE).

An image has N blocks of D entries. A nibble is half an entry, four bits. The step has
((2D)!·2^(2D))^N possible keys. Source: ELE, Madono et al. 2020 (AAAI workshop on artificial
intelligence of things), which combines this step with block scrambling.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps import nibble_shuffling
from fl_vitlora.encryption.steps.nibble_shuffling import adapt, encrypt, inverse

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws for each of N blocks an order of its 2D nibbles, and their bits; int64 (2, N, 2D)."""
    return nibble_shuffling.draw_key(stream, replace(geometry, per_block=True))


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: N · (log₂((2D)!) + 2D).

    Example:
        >>> round(key_space_bits(Geometry(blocks=64, channels=3, block_size=4)))
        38034
    """
    return nibble_shuffling.key_space_bits(replace(geometry, per_block=True))
