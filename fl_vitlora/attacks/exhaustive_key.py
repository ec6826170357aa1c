"""Tries all keys if a cipher has few keys, and guesses the key with the most plausible images.

Some steps have few keys: scrambling with many fixed blocks, or the steps of EtC on an image of few
blocks. The attack decrypts with each key and takes the one whose images are most likely under a
normal distribution that is fitted to the public images. With a key for every image, each image is
attacked by itself, so such a key does not prevent the attack.

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_search.prior import Prior, first_of, signed_blocks
from fl_vitlora.attacks.pictures import Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.second_order import DECRYPTED, lacks_known_images
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.encryption.all_keys import LISTS, all_keys

MOST_BITS = 16.0  # log₂ of the number of keys that are tried; a key takes about half a millisecond
EVERY = 256  # keys that are tried between two checks of the clock
TRIED = "keys tried"


@dataclass(frozen=True)
class Opened:
    """A guess: the plain images of a client.

    Attributes:
        client: The number of the client.
        images: The guess of each of the first images of the client, uint8 (n, C, H, W).
        keys: The number of keys that were tried.
    """

    client: int
    images: Tensor = field(repr=False)
    keys: int


@dataclass(frozen=True, kw_only=True)
class ExhaustiveKey(Attack[WorkerView | ThiefView, Opened]):
    """The attack on `images` ciphertexts of a client."""

    adversaries = (WorkerView, ThiefView)
    goal = "The images of a client, by trying all keys of a cipher that has few."
    figures = (DECRYPTED, TRIED)

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why not all keys can be tried; the reason names the number of keys."""
        cipher = view.public.cipher
        if view.sealed or not cipher.steps:
            return view.sealed or "the images are not encrypted"
        if cipher.key_space_bits > MOST_BITS:
            return (
                f"the cipher has 2^{cipher.key_space_bits:.0f} keys, and at most "
                f"2^{MOST_BITS:.0f} are tried"
            )
        if unknown := sorted(set(cipher.steps) - set(LISTS)):
            return f"the keys of the step {unknown[0]} cannot be listed"
        return lacks_known_images(view.public)

    def guess(self, view: WorkerView | ThiefView) -> Opened:
        """Decrypts with each key, and returns the most plausible images."""
        assert view.images is not None
        public, seen = view.public, view.images[: self.images]
        prior = Prior.of(public.images, public.patch_size)
        first, alone = first_of(prior.groups), public.settings.encryption.scope == "image"
        best, found, tried = np.full(len(seen), -math.inf), seen.clone(), 0
        for key in all_keys(public.cipher):
            if tried % EVERY == 0:
                view.clock.check()
            tried += 1
            plain = public.cipher.decrypt(seen, key)
            blocks = signed_blocks(plain, public.patch_size)[:, :, first]
            likely = prior.whole.likelihood(blocks.reshape(len(blocks), -1))
            likely = likely if alone else np.full(len(seen), likely.sum())
            better = likely > best
            best[better], found[torch.from_numpy(better)] = (
                likely[better],
                plain[torch.from_numpy(better)],
            )
        return Opened(view.client, found, tried)

    def score(self, guess: Opened, truth: Truth) -> Sequence[Figure]:
        """Returns the share of decrypted images. The share by chance is that of a random key."""
        plain = truth.owned[guess.client].plain[: len(guess.images)]
        same = (guess.images == plain).flatten(1).all(dim=1)
        right = 100 * float(same.double().mean())
        return [
            Figure(name=DECRYPTED, value=right, floor=100 / guess.keys, ceiling=100),
            Figure(name=TRIED, value=guess.keys, unit=""),
        ]

    def pictures(self, guess: Opened, truth: Truth) -> Pictures:
        """Returns the most plausible images of the client."""
        return beside(truth.owned[guess.client], guess.images)
