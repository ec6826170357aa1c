"""Ciphers: sequences of perceptual encryption steps, each with its own key.

A `Cipher` has the steps of the setting `encryption.steps` for images of one shape. `encrypt` and
`decrypt` are bijections on uint8 images. These ciphers hide what a person could *see* in an image.
A cipher does not resist cryptanalysis, least of all if one key encrypts many images.

Letters in shapes: B images, C channels, H × W pixels, N blocks, D entries a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.image_blocks import from_blocks, grid, to_blocks
from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.pixel_map import PROBES, PixelMap, probe
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.errors import UserError

CipherKey = Mapping[str, Tensor]


def subkeys(secret: bytes, context: str, steps: Iterable[str]) -> dict[str, bytes]:
    """Derives an independent subkey of 32 bytes for every step.

    Args:
        secret: The owner's secret of 32 bytes.
        context: A text that says what the key is for.
        steps: The names of the steps.

    Returns:
        A dictionary: the subkey of each step, by the name of the step.
    """
    return {step: derive_key(secret, f"{context}/{step}") for step in steps}


@dataclass(frozen=True, kw_only=True)
class Cipher:
    """A sequence of encryption steps for images of one shape.

    Attributes:
        steps: The names of the steps (keys of `STEPS`) in the order of encryption. A cipher without
            steps leaves images plain.
        block_size: The side of a block in pixels, usually the patch size of the model that reads
            the images.
        image_shape: The shape (C, H, W) of an image.
        fixed_blocks: The number of blocks that block scrambling does not move.
        fixed_entries: The number of entries of a block that pixel shuffling does not move.
        per_block: True if the steps that change the inside of blocks have a separate key for every
            block.
    """

    steps: Sequence[str]
    block_size: int
    image_shape: tuple[int, int, int]
    fixed_blocks: int = 0
    fixed_entries: int = 0
    per_block: bool = False

    @property
    def geometry(self) -> Geometry:
        """Returns the sizes on which the keys depend.

        Raises:
            UserError: When the image cannot be divided into whole blocks, or `fixed_blocks` or
                `fixed_entries` exceeds the number of blocks or entries.
        """
        channels, height, width = self.image_shape
        rows, columns = grid(height, width, self.block_size)
        geometry = Geometry(
            blocks=rows * columns,
            channels=channels,
            block_size=self.block_size,
            fixed_blocks=self.fixed_blocks,
            fixed_entries=self.fixed_entries,
            per_block=self.per_block,
        )
        for name, fixed, most in (
            ("fixed_blocks", geometry.fixed_blocks, geometry.blocks),
            ("fixed_entries", geometry.fixed_entries, geometry.entries),
        ):
            if fixed > most:
                raise UserError(f"encryption.{name} {fixed}: expected at most {most}")
        return geometry

    @property
    def key_space_bits(self) -> float:
        """Returns the number of possible keys of all steps together, as a logarithm to base 2."""
        return sum(STEPS[step].key_space_bits(self.geometry) for step in self.steps)

    def key(self, secret: bytes, context: str) -> CipherKey:
        """Derives the key of every step from the owner's secret.

        Args:
            secret: The owner's secret of 32 bytes.
            context: A text that says what the key is for. Different texts give independent keys.

        Returns:
            A dictionary: the key of each step, by the name of the step.
        """
        return self.key_of(subkeys(secret, context, self.steps))

    def key_of(self, subkeys: Mapping[str, bytes]) -> CipherKey:
        """Draws the key of every step from a subkey of 32 bytes.

        Args:
            subkeys: The subkey of each step, by the name of the step, as the function `subkeys`
                derives it.
        """
        streams = {step: KeyStream(subkeys[step]) for step in self.steps}
        return {step: STEPS[step].draw_key(streams[step], self.geometry) for step in self.steps}

    def encrypt(self, images: Tensor, key: CipherKey) -> Tensor:
        """Encrypts images.

        Args:
            images: Plain images, uint8 (B, C, H, W).
            key: The key, as the method `key` returns it.

        Returns:
            The ciphertext, with the shape and type of the images.

        Raises:
            ValueError: When the images are not uint8, or when their shape is not the cipher's
                `image_shape`.
        """
        self._check(images)
        if len(images) <= PROBES:
            return self.encrypt_by_steps(images, key)
        return self._map(key).apply(images)

    def decrypt(self, images: Tensor, key: CipherKey) -> Tensor:
        """Decrypts images. This is the exact inverse of `encrypt`, with the same arguments."""
        self._check(images)
        if len(images) <= PROBES:
            return self.decrypt_by_steps(images, key)
        return self._map(key).invert(images)

    def adapt(self, reader: PatchReader, key: CipherKey) -> PatchReader:
        """Adapts a patch embedding to a key, so that ciphertext gives the tokens of plain images.

        The method is key-dependent domain adaptation (arXiv 2309.02556, 2401.05126). The adaptation
        is exact and needs no training. Everyone who knows the original model can compute the key
        from the adapted model.

        Args:
            reader: The patch embedding and position embedding for plain images.
            key: The key, as the method `key` returns it.

        Returns:
            The patch embedding and position embedding for ciphertext.

        Raises:
            UserError: If this model cannot be adapted to the key of a step.
        """
        self._check_patches(reader)
        for step in self.steps:
            reader = STEPS[step].adapt(reader, key[step])
        return reader

    def restore(self, reader: PatchReader, key: CipherKey) -> PatchReader:
        """Inverts `adapt`: converts a patch embedding for ciphertext to one for plain images."""
        self._check_patches(reader)
        for step in reversed(self.steps):
            reader = STEPS[step].adapt(reader, STEPS[step].inverse(key[step]))
        return reader

    def encrypt_by_steps(self, images: Tensor, key: CipherKey) -> Tensor:
        """Returns the same ciphertext as `encrypt`, computed step by step, which is slower."""
        blocks = to_blocks(images, self.block_size)
        for step in self.steps:
            blocks = STEPS[step].encrypt(blocks, key[step])
        return from_blocks(blocks, *self.image_shape[1:], self.block_size)

    def decrypt_by_steps(self, images: Tensor, key: CipherKey) -> Tensor:
        """Inverts `encrypt_by_steps`, step by step from the last to the first."""
        blocks = to_blocks(images, self.block_size)
        for step in reversed(self.steps):
            blocks = STEPS[step].encrypt(blocks, STEPS[step].inverse(key[step]))
        return from_blocks(blocks, *self.image_shape[1:], self.block_size)

    def _map(self, key: CipherKey) -> PixelMap:
        return probe(lambda images: self.encrypt_by_steps(images, key), self.image_shape)

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"expected uint8 images of shape (B, {', '.join(map(str, self.image_shape))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )

    def _check_patches(self, reader: PatchReader) -> None:
        entries = self.geometry.entries
        if self.steps and reader.weight.shape[-1] != entries:
            raise UserError(
                f"the encryption has blocks of {entries} entries, but the model has patches of "
                f"{reader.weight.shape[-1]} entries, so there is no key adaptation; set "
                "encryption.block_size to the model's patch size, or set encryption.adapt=false"
            )
