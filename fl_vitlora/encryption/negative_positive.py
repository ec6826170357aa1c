"""Negative-positive transformation: chosen entries q of every block become 255 - q.

The key is one bit for each of the D entries of a block; all blocks share it. 2^D keys.
Source: the encryption of images for vision transformers in arXiv 2309.02556 and 2507.11943 ("bit
flipping" where pixels are written in bits).

B images, N blocks, D entries a block.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.encryption.stream import KeyStream


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws the mask of entries to invert, bool (D,)."""
    return stream.bits(geometry.entries)


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Inverts the chosen entries of (B, N, D), uint8: 255 - q flips all bits of q."""
    return x ^ (key * 255).to(x.dtype)


def adapt(reader: Reader, key: Tensor) -> Reader:
    """Lets a model read inverted entries: x' = -x + c gives w·x = -w·x' + w·c on chosen entries."""
    chosen = key.to(reader.weight.dtype)
    return replace(
        reader,
        weight=reader.weight * (1 - 2 * chosen),
        bias=reader.bias + reader.inverse * (reader.weight @ chosen),
    )


def key_space_bits(geometry: Geometry) -> float:
    """Counts the D bits.

    Example:
        >>> key_space_bits(Geometry(blocks=196, channels=3, block_size=16))
        768.0
    """
    return float(geometry.entries)
