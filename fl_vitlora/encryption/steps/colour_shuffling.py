"""Colour component shuffling: in every block the colour channels change places.

The key is one of the C! orders of channels for each block, drawn independently. There are (C!)^N
keys, which is 2.585 bits per block for C = 3.
Source: the encryption-then-compression scheme (EtC). The paper arXiv 2408.05737 compares the key
space of this step with those of the other steps.

Letters in shapes: B images, N blocks, D = C·p² entries a block, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps.entries import inverse_order as inverse
from fl_vitlora.encryption.steps.entries import permute as encrypt
from fl_vitlora.encryption.steps.entries import permute_columns as adapt

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws an order of the D entries for each of the N blocks, int64 (N, D)."""
    entries = torch.arange(geometry.entries).view(geometry.channels, -1)
    return entries[stream.permutations(geometry.blocks, geometry.channels)].flatten(1)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: N · log₂(C!).

    Example:
        >>> round(key_space_bits(Geometry(blocks=196, channels=3, block_size=16)), 1)
        506.7
    """
    return geometry.blocks * math.log2(math.factorial(geometry.channels))
