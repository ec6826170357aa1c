"""Who holds the secret: encrypts, decrypts and adapts for every party, each under the key it has.

The scope of keys says how many there are:

* ``shared``: one key for all images of all clients;
* ``client``: one for each client, and another for the test images;
* ``image``: one for every image;
* ``block``: one for all images, but in it each block has keys of its own for the steps within it.

A party is ``"client 3"`` or `TEST`. Its keys come of the secret through HKDF, each under a context
that names scope, party, the run's seed and, for a key per image, the image.

B images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fl_vitlora.encryption.cipher import Cipher, CipherKey
from fl_vitlora.encryption.keys import derive_key, key_id
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError

Scope = Literal["shared", "client", "image", "block"]
Part = Literal["train", "test"]
TEST = "test"


def client_party(client: int) -> str:
    """Names a client as a party.

    Example:
        >>> client_party(3)
        'client 3'
    """
    return f"client {client}"


@dataclass(frozen=True, kw_only=True)
class KeyHolder:
    """A cipher, a secret, and how many keys are made of it.

    Attributes:
        cipher: The cipher for the images that the model takes.
        secret: 32 bytes; never shown.
        scope: The images that share a key; the module's docstring lists the values.
        seed: The run's seed; another one gives other keys.
    """

    cipher: Cipher
    secret: bytes = field(repr=False)
    scope: Scope = "shared"
    seed: int = 0

    @property
    def key_id(self) -> str:
        """Names the secret."""
        return key_id(self.secret)

    @property
    def key_space_bits(self) -> float:
        """Counts the keys of one image, as a logarithm to base 2."""
        return self.cipher.key_space_bits

    def encrypt(self, images: Tensor, party: str, part: Part = "train") -> Tensor:
        """Encrypts a party's images.

        Args:
            images: uint8 (B, C, H, W); with a key per image all of its part, in their order.
            party: Whose they are.
            part: The use of the images, for example "train"; only a key per image depends on it.

        Returns:
            Ciphertext of the same shape and type.
        """
        return self._each(self.cipher.encrypt, images, party, part)

    def encrypt_all(
        self, images: Tensor, parties: Sequence[str], sizes: Sequence[int], part: Part = "train"
    ) -> Sequence[Tensor]:
        """Encrypts the images of many parties, in one pass where they are under one key.

        Args:
            images: uint8 (B, C, H, W), those of the first party first.
            parties: Whose they are.
            sizes: The number of images of each party, B together.
            part: The use of the images; only a key per image depends on it.

        Returns:
            What `encrypt` makes of each party's images.
        """
        if self.scope in ("shared", "block") or not self.cipher.steps:
            return torch.split(self.encrypt(images, parties[0], part), list(sizes))
        return [
            self.encrypt(own, party, part)
            for own, party in zip(torch.split(images, list(sizes)), parties, strict=True)
        ]

    def decrypt(self, images: Tensor, party: str, part: Part = "train") -> Tensor:
        """Inverts `encrypt` bit by bit; see there."""
        return self._each(self.cipher.decrypt, images, party, part)

    def adapt(self, reader: PatchReader, party: str) -> PatchReader:
        """Adapts a reader of plain images to a party's key; see `Cipher.adapt`."""
        return self.cipher.adapt(reader, self.key(party))

    def restore(self, reader: PatchReader, party: str) -> PatchReader:
        """Inverts `adapt`."""
        return self.cipher.restore(reader, self.key(party))

    def key(self, party: str) -> CipherKey:
        """Derives the one key of a party.

        Raises:
            UserError: When it has one for every image.
        """
        if not self.cipher.steps:
            return {}
        if self.scope == "image":
            raise UserError(
                "a key for every image: no model can be adapted to all of them, and nothing be "
                "aligned; take encryption.scope shared, client or block"
            )
        owner = party if self.scope == "client" else self.scope
        return self.cipher.key(self.secret, f"{owner}/seed {self.seed}")

    def impostor(self) -> KeyHolder:
        """Returns one who has a wrong secret, for measuring what that is worth."""
        return replace(self, secret=derive_key(self.secret, "a wrong key"))

    def _each(
        self,
        transform: Callable[[Tensor, CipherKey], Tensor],
        images: Tensor,
        party: str,
        part: Part,
    ) -> Tensor:
        """Transforms images with the party's key, or every image with its own."""
        if self.scope != "image" or not self.cipher.steps:
            return transform(images, self.key(party))
        result = torch.empty_like(images)
        for number, image in enumerate(images):
            context = f"{party}/{part} image {number}/seed {self.seed}"
            result[number] = transform(image[None], self.cipher.key(self.secret, context))[0]
        return result
