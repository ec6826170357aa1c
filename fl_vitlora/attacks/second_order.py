"""Finds the whole key from a few ciphertexts under one key, by their second-order statistics.

The adversary also has plain images of the same kind, none of which belongs to the attacked client.
`key_search.from_ciphertext` describes the method. The key that is found decrypts all images of the
client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_figures import FIGURES, Guesses, key_figures
from fl_vitlora.attacks.key_search.from_ciphertext import key_from_ciphertext
from fl_vitlora.attacks.key_search.prior import Prior
from fl_vitlora.attacks.pictures import MOST, Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import Public, ThiefView, WorkerView
from fl_vitlora.encryption.cipher import Cipher, CipherKey

DECRYPTED = "images decrypted bit for bit"
THREE_STEPS = ("block_scrambling", "pixel_shuffling", "negative_positive")
MOST_PIXELS = 1024  # different pixel values of an image; the search compares all pairs of them
FEWEST_KNOWN = 100  # plain images that give the statistics of plain images


def lacks_known_images(public: Public) -> str:
    """Returns why the plain images of everyone give no statistics of pixels; empty if they do."""
    plain = public.images
    if len(plain) < FEWEST_KNOWN:
        return (
            f"it needs {FEWEST_KNOWN} plain images of the same kind, and {len(plain)} are at hand"
        )
    values = math.prod(plain.shape[1:]) // (plain.shape[1] if public.grey else 1)
    if values > MOST_PIXELS:
        return f"the search takes images of at most {MOST_PIXELS:,} different values"
    return ""


@dataclass(frozen=True)
class Decrypting:
    """A guess: the key of a client, which can decrypt the client's images.

    Attributes:
        keys: The guessed key of the client.
        patch_size: The side of a block in pixels.
    """

    keys: Mapping[int, CipherKey]
    patch_size: int

    def decrypt(self, client: int, images: Tensor) -> Tensor:
        """Decrypts ciphertext of a client, uint8 (B, C, H, W), with the guessed key."""
        channels, height, width = images.shape[1:]
        shape = (channels, height, width)
        cipher = Cipher(steps=THREE_STEPS, block_size=self.patch_size, image_shape=shape)
        return cipher.decrypt(images, self.keys[client])


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Attack[WorkerView | ThiefView, Decrypting]):
    """The attack on `images` ciphertexts of a client."""

    adversaries = (WorkerView, ThiefView)
    goal = "The whole key, from a few ciphertexts under it and plain images of the same kind."
    figures = (*FIGURES, DECRYPTED)

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why the adversary has no ciphertext to attack; empty if it has some."""
        if view.sealed or view.public.no_common_order:
            return view.sealed or view.public.no_common_order
        return lacks_known_images(view.public)

    def guess(self, view: WorkerView | ThiefView) -> Decrypting:
        """Finds the key with which the decrypted images are most similar to plain images."""
        assert view.images is not None
        prior = Prior.of(view.public.images, view.public.patch_size)
        key = key_from_ciphertext(view.images[: self.images], prior, check=view.clock.check)
        return Decrypting(keys={view.client: key}, patch_size=view.public.patch_size)

    def score(self, guess: Decrypting, truth: Truth) -> Sequence[Figure]:
        """Returns the shares of the key that are correct, and the share of decrypted images."""
        guesses: Guesses = guess.keys
        (client,) = guesses
        owned = truth.owned[client]
        same = (guess.decrypt(client, owned.ciphertext) == owned.plain).flatten(1).all(dim=1)
        exact = 100 * float(same.double().mean())
        return [
            *key_figures(guesses, truth, guess.patch_size),
            Figure(name=DECRYPTED, value=exact, floor=0, ceiling=100),
        ]

    def pictures(self, guess: Decrypting, truth: Truth) -> Pictures:
        """Returns the first images of the client, decrypted with the guessed key."""
        (client,) = guess.keys
        owned = truth.owned[client]
        return beside(owned, guess.decrypt(client, owned.ciphertext[:MOST]))
