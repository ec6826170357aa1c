"""Negative-positive transformation of blocks: in chosen blocks every entry q becomes 255 - q.

The key is one bit for each block, so there are 2^N keys. The step `negative_positive` inverts
chosen entries instead of whole blocks, and the same entries in all blocks.
Source: the encryption-then-compression scheme (EtC). The paper arXiv 2408.05737 compares the key
space of this step with those of the other steps.

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
    """Draws which of the N blocks are inverted, bool (N, 1)."""
    return stream.bits(geometry.blocks).unsqueeze(1)


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: N, for 2^N keys.

    Example:
        >>> key_space_bits(Geometry(blocks=196, channels=3, block_size=16))
        196.0
    """
    return float(geometry.blocks)
