"""Negative-positive transformation of single pixels: any colour value of the image may be inverted.

An image has N blocks of D colour values. The key is one bit for each of the N·D colour values, so
there are 2^(N·D) keys. Source: pixel-based encryption (PE), Sirichotedumrong et al. 2019 (arXiv
1905.01827).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps import negative_positive
from fl_vitlora.encryption.steps.negative_positive import adapt, encrypt, inverse

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws which colour values are inverted, bool (N, D)."""
    return negative_positive.draw_key(stream, replace(geometry, per_block=True))


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: N·D, for 2^(N·D) keys.

    Example:
        >>> key_space_bits(Geometry(blocks=64, channels=3, block_size=4))
        3072.0
    """
    return float(geometry.blocks * geometry.entries)
