"""The encryption steps of ciphers, one step per file; `STEPS` lists all of them.

A step is a module with the five pure functions of the protocol `Step`. A step only moves the
entries of uint8 blocks, or halves of entries, and flips their bits.

Letters in shapes: B images, N blocks, D entries a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps import (
    block_negative_positive,
    block_nibble_shuffling,
    block_scrambling,
    colour_shuffling,
    negative_positive,
    nibble_shuffling,
    pixel_colour_shuffling,
    pixel_negative_positive,
    pixel_shuffling,
    rotation_inversion,
)


class Step(Protocol):
    """One encryption step: a bijection on uint8 blocks (B, N, D)."""

    def draw_key(self, stream: KeyStream, geometry: Geometry) -> Tensor:
        """Draws a key for images with the sizes that `geometry` states."""
        ...

    def encrypt(self, x: Tensor, key: Tensor) -> Tensor:
        """Encrypts plain blocks x (B, N, D), and returns ciphertext of the same shape."""
        ...

    def inverse(self, key: Tensor) -> Tensor:
        """Returns the key that inverts `key`, both for images and for patch embeddings."""
        ...

    def adapt(self, reader: PatchReader, key: Tensor) -> PatchReader:
        """Adapts a patch embedding to a key: ciphertext then gives the tokens of plain blocks."""
        ...

    def key_space_bits(self, geometry: Geometry) -> float:
        """Returns the number of possible keys, as a logarithm to base 2."""
        ...


STEPS: Mapping[str, Step] = {
    "block_scrambling": block_scrambling,
    "pixel_shuffling": pixel_shuffling,
    "negative_positive": negative_positive,
    "colour_shuffling": colour_shuffling,
    "rotation_inversion": rotation_inversion,
    "block_negative_positive": block_negative_positive,
    "nibble_shuffling": nibble_shuffling,
    "block_nibble_shuffling": block_nibble_shuffling,
    "pixel_negative_positive": pixel_negative_positive,
    "pixel_colour_shuffling": pixel_colour_shuffling,
}
