"""The key holder has the secret. It encrypts and decrypts images and adapts models to keys.

The scope of keys says which images share a key:

* ``shared``: one key for all images of all clients;
* ``client``: one key for each client, and another one for the test images;
* ``image``: one key for every image;
* ``block``: one key for all images; each block has its own keys for the steps that change the
  inside of blocks.

A party is a client, such as ``"client 3"``, or `TEST`. HKDF derives the keys of a party from the
secret and a text, the context. This text names the scope, the party, the run's seed and, if every
image has its own key, the image.

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
    """Returns the name of the party of a client.

    Example:
        >>> client_party(3)
        'client 3'
    """
    return f"client {client}"


@dataclass(frozen=True, kw_only=True)
class KeyHolder:
    """A cipher, a secret, and the scope of the keys derived from the secret.

    Attributes:
        cipher: The cipher for images of the model's input shape.
        secret: The owner's secret of 32 bytes; it is never printed.
        scope: The images that share a key; the module's docstring lists the values.
        seed: The run's seed; another seed gives other keys.
    """

    cipher: Cipher
    secret: bytes = field(repr=False)
    scope: Scope = "shared"
    seed: int = 0

    @property
    def key_id(self) -> str:
        """Returns the id of the secret, which does not reveal it."""
        return key_id(self.secret)

    @property
    def key_space_bits(self) -> float:
        """Returns the number of possible keys of one image, as a logarithm to base 2."""
        return self.cipher.key_space_bits

    def encrypt(self, images: Tensor, party: str, part: Part = "train") -> Tensor:
        """Encrypts a party's images.

        Args:
            images: Plain images, uint8 (B, C, H, W). If every image has its own key, these must be
                all images of the part, in their order.
            party: The party that the images belong to.
            part: The use of the images, for example "train". The keys depend on the part only if
                every image has its own key.

        Returns:
            Ciphertext of the same shape and type.
        """
        return self._each(self.cipher.encrypt, images, party, part)

    def encrypt_all(
        self, images: Tensor, parties: Sequence[str], sizes: Sequence[int], part: Part = "train"
    ) -> Sequence[Tensor]:
        """Encrypts the images of many parties, all at once if the parties share one key.

        Args:
            images: Plain images, uint8 (B, C, H, W), party by party in the order of `parties`.
            parties: The parties that the images belong to.
            sizes: The number of images of each party; the sum of these numbers is B.
            part: The use of the images, as in `encrypt`.

        Returns:
            The ciphertext of each party's images, equal to the result of `encrypt`.
        """
        if self.scope in ("shared", "block") or not self.cipher.steps:
            return torch.split(self.encrypt(images, parties[0], part), list(sizes))
        return [
            self.encrypt(own, party, part)
            for own, party in zip(torch.split(images, list(sizes)), parties, strict=True)
        ]

    def decrypt(self, images: Tensor, party: str, part: Part = "train") -> Tensor:
        """Decrypts a party's images; the exact inverse of `encrypt`, with the same arguments."""
        return self._each(self.cipher.decrypt, images, party, part)

    def adapt(self, reader: PatchReader, party: str) -> PatchReader:
        """Adapts a patch embedding for plain images to a party's key, as `Cipher.adapt` does."""
        return self.cipher.adapt(reader, self.key(party))

    def restore(self, reader: PatchReader, party: str) -> PatchReader:
        """Inverts `adapt`, as `Cipher.restore` does."""
        return self.cipher.restore(reader, self.key(party))

    def key(self, party: str) -> CipherKey:
        """Derives the single key of a party.

        Raises:
            UserError: When the party has a separate key for every image.
        """
        if not self.cipher.steps:
            return {}
        if self.scope == "image":
            raise UserError(
                "encryption.scope image: every image has its own key, so no model can be adapted "
                "or aligned to one key; expected scope shared, client or block"
            )
        owner = party if self.scope == "client" else self.scope
        return self.cipher.key(self.secret, f"{owner}/seed {self.seed}")

    def impostor(self) -> KeyHolder:
        """Returns a holder of a wrong secret, to measure the accuracy that an attacker reaches."""
        return replace(self, secret=derive_key(self.secret, "a wrong key"))

    def _each(
        self,
        transform: Callable[[Tensor, CipherKey], Tensor],
        images: Tensor,
        party: str,
        part: Part,
    ) -> Tensor:
        """Transforms all images with the party's key, or each image with its own key."""
        if self.scope != "image" or not self.cipher.steps:
            return transform(images, self.key(party))
        result = torch.empty_like(images)
        for number, image in enumerate(images):
            context = f"{party}/{part} image {number}/seed {self.seed}"
            result[number] = transform(image[None], self.cipher.key(self.secret, context))[0]
        return result
