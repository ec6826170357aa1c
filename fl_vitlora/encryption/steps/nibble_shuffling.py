"""Learnable encryption (LE): permutes the 4-bit halves of a block's entries, and inverts some.

Every 8-bit entry of a block is split into its upper and lower four bits, so D entries give 2D
nibbles. First, every nibble h that the key chooses becomes 15 - h. After that, all nibbles of a
block are permuted, and pairs of nibbles are joined into entries. If an entry gets the halves of two
other entries, it is not a linear function of these two entries. So no model can be adapted to the
key.

The key has one order of the 2D nibbles and one bit for each nibble, shared by all blocks. There are
(2D)!·2^(2D) keys. The first implementations of LE derived the bits from the order, so they have
only (2D)! keys, which is 498.3 bits for blocks of 4 × 4 × 3. In this module, order and bits are
independent.
Source: LE, Tanaka 2018 (arXiv 1804.00490).

Letters in shapes: B images, N blocks, D entries a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream, permutation_bits
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps.entries import inverse_order, permute
from fl_vitlora.errors import UserError


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws an order of the nibbles and a bit for each nibble.

    Returns:
        The order and the bits, int64 (2, 2D), or (2, N, 2D) if every block has its own key.
    """
    halves = 2 * geometry.entries
    shape = (geometry.blocks, halves) if geometry.per_block else (halves,)
    orders = stream.permutations(geometry.keys, halves)
    flips = stream.bits(geometry.keys * halves)
    return torch.stack([orders.view(shape), flips.view(shape).to(torch.int64)])


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Inverts and then permutes the nibbles of blocks x, uint8 (B, N, D)."""
    order, flips = key
    halves = torch.stack([x >> 4, x & 15], dim=-1).flatten(-2) ^ (flips * 15).to(x.dtype)
    moved = permute(halves, order)
    return moved[..., 0::2] << 4 | moved[..., 1::2]


def inverse(key: Tensor) -> Tensor:
    """Returns the inverse key, which moves every nibble back and inverts the same nibbles."""
    order, flips = key
    return torch.stack([inverse_order(order), flips.gather(-1, order)])


def adapt(reader: PatchReader, key: Tensor) -> PatchReader:
    """Raises an error, because no model can be adapted to nibble shuffling.

    Raises:
        UserError: Always, because the step has no key adaptation.
    """
    del reader, key
    raise UserError(
        "nibble shuffling (LE, ELE) has no key adaptation: the step joins halves of different "
        "pixels, and a linear patch embedding cannot separate them; set encryption.adapt=false, "
        "and set finetuning.patch_embedding to aggregate or local"
    )


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: log₂((2D)!) + 2D for each separate key.

    Example:
        >>> round(key_space_bits(Geometry(blocks=64, channels=3, block_size=4)), 1)
        594.3
    """
    halves = 2 * geometry.entries
    return geometry.keys * (permutation_bits(halves) + halves)
