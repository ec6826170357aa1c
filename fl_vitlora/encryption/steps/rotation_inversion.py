"""Block rotation and inversion: every block is turned and mirrored.

The key is one of the eight symmetries of the square for each block, drawn independently: four
rotations, each with or without a mirror image. There are 8^N keys, which is 3 bits per block.
Source: the encryption-then-compression scheme (EtC). The paper arXiv 2408.05737 compares the key
space of this step with those of the other steps.

Letters in shapes: B images, N blocks, D = C·p² entries a block, p block size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps.entries import inverse_order as inverse
from fl_vitlora.encryption.steps.entries import permute as encrypt
from fl_vitlora.encryption.steps.entries import permute_columns as adapt

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits", "symmetries"]

SYMMETRIES = 8


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws an order of the D entries for each of the N blocks, int64 (N, D)."""
    return symmetries(geometry)[stream.numbers(SYMMETRIES, geometry.blocks)]


def symmetries(geometry: Geometry) -> Tensor:
    """Returns the eight orders of the D entries that turn and mirror a block, int64 (8, D)."""
    size = geometry.block_size
    entries = torch.arange(geometry.entries).view(geometry.channels, size, size)
    turned = [torch.rot90(entries, quarter, (1, 2)) for quarter in range(4)]
    orders = [order.flatten() for square in turned for order in (square, square.flip(2))]
    return torch.stack(orders)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: 3 per block, or 0 for blocks of one pixel.

    Example:
        >>> key_space_bits(Geometry(blocks=196, channels=3, block_size=16))
        588.0
    """
    return 3.0 * geometry.blocks if geometry.block_size > 1 else 0.0
