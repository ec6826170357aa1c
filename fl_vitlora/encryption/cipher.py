"""Ciphers: steps of perceptual encryption in the order given, each with a key of its own.

A step is a module with four pure functions (`Step`); a `Cipher` is a list of steps for one shape of
images; `encrypt` and `decrypt` are bijections on uint8 images. What these ciphers protect is what a
person could *see*; they do not resist cryptanalysis, least of all when one key serves many images.

B images, C channels, H × W pixels, N blocks, D entries a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl_vitlora.encryption import (
    block_negative_positive,
    block_scrambling,
    colour_shuffling,
    negative_positive,
    pixel_shuffling,
    rotation_inversion,
)
from fl_vitlora.encryption.blocks import from_blocks, grid, to_blocks
from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.pixel_map import PixelMap, probe
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.encryption.stream import KeyStream
from fl_vitlora.errors import UserError

CipherKey = Mapping[str, Tensor]


class Step(Protocol):
    """One bijection on uint8 blocks (B, N, D) that moves entries and flips their bits."""

    def draw_key(self, stream: KeyStream, geometry: Geometry) -> Tensor:
        """Draws a key for images of this geometry."""
        ...

    def encrypt(self, x: Tensor, key: Tensor) -> Tensor:
        """Turns plain blocks into ciphertext of the same shape."""
        ...

    def adapt(self, reader: Reader, key: Tensor) -> Reader:
        """Makes of a reader of plain blocks one that computes the same of ciphertext."""
        ...

    def key_space_bits(self, geometry: Geometry) -> float:
        """Counts the keys, as a logarithm to base 2."""
        ...


STEPS: Mapping[str, Step] = {
    "block_scrambling": block_scrambling,
    "pixel_shuffling": pixel_shuffling,
    "negative_positive": negative_positive,
    "colour_shuffling": colour_shuffling,
    "rotation_inversion": rotation_inversion,
    "block_negative_positive": block_negative_positive,
}


@dataclass(frozen=True, kw_only=True)
class Cipher:
    """Steps for images of one shape.

    Attributes:
        steps: Names of `STEPS`, in the order of encryption; none leaves images plain.
        block_size: Pixels a side; equal to the patch size of the model that will read the images.
        image_shape: (C, H, W).
        fixed_blocks: How many blocks block scrambling leaves in their place.
        fixed_entries: How many entries of a block pixel shuffling leaves in theirs.
    """

    steps: Sequence[str]
    block_size: int
    image_shape: tuple[int, int, int]
    fixed_blocks: int = 0
    fixed_entries: int = 0

    @property
    def geometry(self) -> Geometry:
        """Returns the shape of the keys.

        Raises:
            UserError: When the block size does not divide the image, or more is to stay in its
                place than there is.
        """
        channels, height, width = self.image_shape
        rows, columns = grid(height, width, self.block_size)
        geometry = Geometry(
            blocks=rows * columns,
            channels=channels,
            block_size=self.block_size,
            fixed_blocks=self.fixed_blocks,
            fixed_entries=self.fixed_entries,
        )
        for name, fixed, most in (
            ("fixed_blocks", geometry.fixed_blocks, geometry.blocks),
            ("fixed_entries", geometry.fixed_entries, geometry.entries),
        ):
            if fixed > most:
                raise UserError(f"encryption.{name} {fixed}: there are {most}")
        return geometry

    @property
    def key_space_bits(self) -> float:
        """Counts the keys of all steps together, as a logarithm to base 2."""
        return sum(STEPS[step].key_space_bits(self.geometry) for step in self.steps)

    def key(self, secret: bytes, context: str) -> CipherKey:
        """Derives the key of every step from the owner's secret.

        Args:
            secret: 32 bytes.
            context: What the key is for; another context gives an independent key.

        Returns:
            A key for each step.
        """
        streams = {step: KeyStream(derive_key(secret, f"{context}/{step}")) for step in self.steps}
        return {step: STEPS[step].draw_key(streams[step], self.geometry) for step in self.steps}

    def encrypt(self, images: Tensor, key: CipherKey) -> Tensor:
        """Encrypts images.

        Args:
            images: Plain images, uint8 (B, C, H, W).
            key: From `key`.

        Returns:
            Ciphertext of the same shape and type.

        Raises:
            ValueError: When type or shape do not fit.
        """
        self._check(images)
        return self._map(key).apply(images)

    def decrypt(self, images: Tensor, key: CipherKey) -> Tensor:
        """Inverts `encrypt` bit by bit; see there."""
        self._check(images)
        return self._map(key).invert(images)

    def adapt(self, reader: Reader, key: CipherKey) -> Reader:
        """Adapts a model to the key, so that it computes of ciphertext what it did of plain images.

        Key-dependent domain adaptation (arXiv 2309.02556, 2401.05126): exact, not trained. What it
        returns betrays the key to everyone who knows the model it was made from.

        Args:
            reader: Of plain images.
            key: From `key`.

        Returns:
            The reader of ciphertext.

        Raises:
            UserError: When a step has no adaptation for this model.
        """
        for step in self.steps:
            reader = STEPS[step].adapt(reader, key[step])
        return reader

    def encrypt_by_steps(self, images: Tensor, key: CipherKey) -> Tensor:
        """Encrypts step by step, as the literature describes it; slower than `encrypt`."""
        blocks = to_blocks(images, self.block_size)
        for step in self.steps:
            blocks = STEPS[step].encrypt(blocks, key[step])
        return from_blocks(blocks, *self.image_shape[1:], self.block_size)

    def _map(self, key: CipherKey) -> PixelMap:
        return probe(lambda images: self.encrypt_by_steps(images, key), self.image_shape)

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"expected uint8 images of shape (B, {', '.join(map(str, self.image_shape))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
