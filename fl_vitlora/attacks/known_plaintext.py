"""Finds the key from a few pairs of a plain image and its ciphertext.

The adversary is an insider, who is *assumed* to know a few plain images of a client. Most
ciphers do the same to all blocks. Then a pair gives mask, order of entries and order of blocks by
exact elimination (`key_search.from_pairs`). For any other cipher, pairs show where each pixel goes
(`key_search.map_from_pairs`). If every image has its own key, a pair says nothing about other
images. Therefore the figures are measured only on images outside the pairs.

Letters in shapes: n images, Q pairs, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_search.from_pairs import key_from_pairs
from fl_vitlora.attacks.key_search.map_from_pairs import map_from_pairs
from fl_vitlora.attacks.pictures import MOST, Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.second_order import THREE_STEPS
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import InsiderView, Public
from fl_vitlora.encryption.pixel_map import PixelMap, probe

FEWER = {"1 pair": 1, "2 pairs": 2}  # numbers of pairs that are tried in addition to all pairs
ALL, NONE = "all pairs", "no pair"


@dataclass(frozen=True)
class Decryptions:
    """A guess: the maps that decrypt the images of a client.

    Attributes:
        client: The number of the client.
        pairs: The number Q of all pairs.
        maps: The maps from plain images to ciphertext that follow from the numbers of pairs in
            `FEWER` and from all pairs. The name `NONE` has a random map.
    """

    client: int
    pairs: int
    maps: Mapping[str, PixelMap]


@dataclass(frozen=True, kw_only=True)
class KnownPlaintext(Attack[InsiderView, Decryptions]):
    """The attack with `images` pairs of a plain image and its ciphertext."""

    adversaries = (InsiderView,)
    goal = "The key, from a few images of a client that the adversary knows in plain."
    figures = (
        f"images decrypted bit for bit, {ALL}",
        f"values decrypted, {ALL}",
        *(f"images decrypted bit for bit, {few}" for few in FEWER),
    )

    def lacks(self, view: InsiderView) -> str:
        """Returns why the adversary has too few pairs; empty if it has enough."""
        if not view.public.cipher.steps:
            return "the images are not encrypted"
        if len(view.known) < self.images:
            return f"it needs {self.images} known images, and {len(view.known)} are at hand"
        return ""

    def guess(self, view: InsiderView) -> Decryptions:
        """Finds the maps that decrypt the images, for several numbers of pairs."""
        assert view.images is not None
        counts = {few: min(count, self.images) for few, count in FEWER.items()}
        maps = {
            name: map_of(view.known[:count], view.images[:count], view.public)
            for name, count in (counts | {ALL: self.images}).items()
        }
        maps[NONE] = random_map(len(maps[ALL].order), view.public)
        return Decryptions(client=view.client, pairs=self.images, maps=maps)

    def score(self, guess: Decryptions, truth: Truth) -> Sequence[Figure]:
        """Returns which shares of the images outside the pairs, and of their values, are correct.

        Only the figures for all pairs are judged.
        """
        owned = truth.owned[guess.client]
        plain, ciphertext = owned.plain[guess.pairs :], owned.ciphertext[guess.pairs :]
        right = {n: how.invert(ciphertext) == plain for n, how in guess.maps.items()}
        exact = {n: _percent(same.flatten(1).all(dim=1)) for n, same in right.items()}
        of_all, of_values, *of_fewer = self.figures
        return [
            Figure(name=of_all, value=exact[ALL], floor=0, ceiling=100),
            Figure(
                name=of_values, value=_percent(right[ALL]), floor=_percent(right[NONE]), ceiling=100
            ),
            *(
                Figure(name=name, value=exact[few], floor=0)
                for few, name in zip(FEWER, of_fewer, strict=True)
            ),
        ]

    def pictures(self, guess: Decryptions, truth: Truth) -> Pictures:
        """Returns the first images outside the pairs, decrypted with the map from all pairs."""
        owned = truth.owned[guess.client]
        others = owned.ciphertext[guess.pairs : guess.pairs + MOST]
        return beside(owned, guess.maps[ALL].invert(others), first=guess.pairs)


def map_of(plain: Tensor, ciphertext: Tensor, public: Public) -> PixelMap:
    """Returns the map from plain images to ciphertext that follows from pairs.

    Args:
        plain: Plain images, uint8 (Q, C, H, W).
        ciphertext: The ciphertext of these images, uint8 (Q, C, H, W).
        public: The settings of the run.
    """
    if public.no_common_order:
        return map_from_pairs(plain, ciphertext, halves=_moves_halves(public))
    key = key_from_pairs(plain, ciphertext, public.cipher.block_size)
    cipher = replace(public.cipher, steps=THREE_STEPS)
    return probe(lambda images: cipher.encrypt_by_steps(images, key), cipher.image_shape)


def random_map(units: int, public: Public) -> PixelMap:
    """Returns a map that moves and inverts the units of an image at random."""
    generator, white = np.random.default_rng(0), 15 if _moves_halves(public) else 255
    mask = generator.integers(2, size=units).astype(np.uint8) * np.uint8(white)
    return PixelMap(order=generator.permutation(units), mask=mask)


def _moves_halves(public: Public) -> bool:
    return any("nibble" in step for step in public.cipher.steps)


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
