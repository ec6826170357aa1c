"""Negative-positive transformation: chosen entries q of every block become 255 - q.

The key is one bit for each of the D entries of a block. All blocks share the bits of the key, or
every block has its own bits (`Geometry.per_block`). There are 2^D keys, or 2^(N·D) if every block
has its own bits. Source: the encryption of images for vision transformers in arXiv 2309.02556 and
2507.11943 (called "bit flipping" when pixels are written in bits).

Letters in shapes: B images, N blocks, D entries a block.
"""

from __future__ import annotations

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps.entries import invert as encrypt
from fl_vitlora.encryption.steps.entries import negate_columns as adapt
from fl_vitlora.encryption.steps.entries import same as inverse

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws which entries are inverted, bool (D,), or (N, D) if every block has its own key."""
    return stream.bits(geometry.keys * geometry.entries).view(geometry.key_shape)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: D, or N·D if every block has its own key.

    Example:
        >>> key_space_bits(Geometry(blocks=196, channels=3, block_size=16))
        768.0
    """
    return float(geometry.keys * geometry.entries)
