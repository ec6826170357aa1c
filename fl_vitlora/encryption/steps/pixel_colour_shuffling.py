"""Colour component shuffling of single pixels: in every pixel the channels change places.

The key is one of the C! orders of channels for each pixel, drawn independently. There are
(C!)^(N·p²) keys.
Source: pixel-based encryption (PE), Sirichotedumrong et al. 2019 (arXiv 1905.01827).

Letters in shapes: B images, N blocks, D = C·p² entries a block, C channels, p block size.
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
    pixels = geometry.block_size**2
    orders = stream.permutations(geometry.blocks * pixels, geometry.channels)
    channels = orders.view(geometry.blocks, pixels, -1).transpose(1, 2)
    return (channels * pixels + torch.arange(pixels)).flatten(1)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: N · p² · log₂(C!).

    Example:
        >>> round(key_space_bits(Geometry(blocks=64, channels=3, block_size=4)), 1)
        2647.0
    """
    pixels = geometry.blocks * geometry.block_size**2
    return pixels * math.log2(math.factorial(geometry.channels))
