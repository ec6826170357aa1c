"""The key holder: an object with the owner's secret, which encrypts images and adapts models.

The scope of the keys says which images share a key:

* ``shared``: one key for all images of all clients;
* ``client``: one key for each client, and another key for the test images;
* ``image``: a separate key for every image;
* ``block``: one key for all images, in which each block of an image has its own values for the
  steps that change the inside of blocks.

A party is a client, such as ``"client 3"``, or `TEST`, the owner of the common images for testing
and validation. HKDF derives the keys of a party from the secret and a text, which is called the
context. The context names the scope or the party, the run's seed and, if every image has its own
key, the image.

Letters in shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fl_vitlora.encryption.cipher import Cipher, CipherKey
from fl_vitlora.encryption.client_keys import ClientKey, context_of
from fl_vitlora.encryption.keys import derive_key, key_id
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError

Scope = Literal["shared", "client", "image", "block"]
Part = Literal["train", "validation", "test"]
TEST = "test"
WRONG = "a wrong key"  # the purpose of keys that are derived to measure accuracy under a wrong key


def client_party(client: int) -> str:
    """Returns the name of the party of a client.

    Example:
        >>> client_party(3)
        'client 3'
    """
    return f"client {client}"


@dataclass(frozen=True, kw_only=True)
class KeyHolder:
    """Encrypts and decrypts the images of all parties, and adapts patch embeddings to their keys.

    Attributes:
        cipher: The cipher for images of the model's input shape.
        secret: The owner's secret of 32 bytes, from which all keys are derived. The secret is never
            printed.
        scope: The images that share a key: "shared", "client", "image" or "block", as the docstring
            of this module explains.
        seed: The run's seed. With another seed, all keys are different.
        secrets: The secret of each party, by its name, if parties have secrets of their own; empty
            if all parties have `secret`. The secrets are never printed.
        own: The exported key of one party, with which only this party's images and tensors can be
            transformed; None if the holder has secrets. With `own`, no secret is used.
    """

    cipher: Cipher
    secret: bytes = field(repr=False)
    scope: Scope = "shared"
    seed: int = 0
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    own: ClientKey | None = field(default=None, repr=False)

    @property
    def key_id(self) -> str:
        """Returns the id of the secret. The id does not reveal the secret."""
        return key_id(self.secret) if self.own is None else self.own.name

    @property
    def key_space_bits(self) -> float:
        """Returns the number of possible keys of one image, as a logarithm to base 2."""
        return self.cipher.key_space_bits

    def encrypt(self, images: Tensor, party: str, part: Part = "train", first: int = 0) -> Tensor:
        """Encrypts a party's images.

        Args:
            images: Plain images, uint8 (B, C, H, W). If every image has its own key, `images` must
                be the images that the party has for this use, always in the same order: all of
                them, or a piece that begins with the image number `first`.
            party: The party that the images belong to.
            part: The use of the images: "train", "validation" or "test". The keys depend on the use
                only if every image has its own key.
            first: The number of the first image among all images that the party has for this use.

        Returns:
            The ciphertext, with the shape and type of the images.
        """
        return self._each(self.cipher.encrypt, images, party, part, first)

    def encrypt_all(
        self, images: Tensor, parties: Sequence[str], sizes: Sequence[int], part: Part = "train"
    ) -> Sequence[Tensor]:
        """Encrypts the images of many parties, all at once if the parties share one key.

        Args:
            images: Plain images, uint8 (B, C, H, W). The images are in the order of the parties.
            parties: The names of the parties that the images belong to.
            sizes: The number of images of each party; the sum of these numbers is B.
            part: The use of the images, as in `encrypt`.

        Returns:
            The ciphertext of each party's images, in the order of `parties`. The ciphertext equals
            the result of `encrypt`, called for one party after the other.
        """
        if self.scope in ("shared", "block") or not self.cipher.steps:
            return torch.split(self.encrypt(images, parties[0], part), list(sizes))
        return [
            self.encrypt(own, party, part)
            for own, party in zip(torch.split(images, list(sizes)), parties, strict=True)
        ]

    def decrypt(self, images: Tensor, party: str, part: Part = "train", first: int = 0) -> Tensor:
        """Decrypts a party's images, as the exact inverse of `encrypt` with the same arguments."""
        return self._each(self.cipher.decrypt, images, party, part, first)

    def adapt(self, reader: PatchReader, party: str) -> PatchReader:
        """Adapts a patch embedding for plain images to a party's key with `Cipher.adapt`."""
        return self.cipher.adapt(reader, self.key(party))

    def restore(self, reader: PatchReader, party: str) -> PatchReader:
        """Inverts `adapt`: makes a patch embedding for plain images again."""
        return self.cipher.restore(reader, self.key(party))

    def key(self, party: str) -> CipherKey:
        """Derives the key of a party, which all images of the party share.

        Raises:
            UserError: When every image has its own key, so that the party has no single key.
        """
        if not self.cipher.steps:
            return {}
        if self.scope == "image":
            raise UserError(
                "encryption.scope image: every image has its own key, so no model can be adapted "
                "or aligned to one key; expected scope shared, client or block"
            )
        if self.own is not None:
            return self.cipher.key_of(self.own.subkeys_of(party, self.scope, self.seed))
        owner = party if self.scope == "client" else self.scope
        return self.cipher.key(self._secret_of(party), context_of(owner, self.seed))

    def impostor(self) -> KeyHolder:
        """Returns a key holder with a wrong secret, to measure accuracy under a wrong key."""
        wrong = {party: derive_key(own, WRONG) for party, own in self.secrets.items()}
        own = None if self.own is None else self.own.changed(WRONG)
        return replace(self, secret=derive_key(self.secret, WRONG), secrets=wrong, own=own)

    def _secret_of(self, party: str) -> bytes:
        """Returns the secret of a party.

        Raises:
            UserError: When parties have secrets of their own, and this party's secret is not known.
        """
        if self.own is not None:
            raise UserError(f"{self.own.source} has no secret, only the key of {self.own.party}")
        if self.secrets and party not in self.secrets:
            raise UserError(f"no key ring has the secret of {party}")
        return self.secrets.get(party, self.secret)

    def _each(
        self,
        transform: Callable[[Tensor, CipherKey], Tensor],
        images: Tensor,
        party: str,
        part: Part,
        first: int,
    ) -> Tensor:
        """Transforms all images with the party's key, or each image with its own key."""
        if self.scope != "image" or not self.cipher.steps:
            return transform(images, self.key(party))
        result, secret = torch.empty_like(images), self._secret_of(party)
        for row, image in enumerate(images):
            context = f"{party}/{part} image {first + row}/seed {self.seed}"
            result[row] = transform(image[None], self.cipher.key(secret, context))[0]
        return result
