"""Finds where each pixel of an image has gone, from the brightness at each place of ciphertexts.

Some places of plain images are usually dark, such as the border of a digit; others are bright, or
vary. If all images of a client are encrypted with one key, the levels of an image's place i appear
at one place j of all ciphertexts, perhaps inverted. The attack compares the levels that each place
of the ciphertexts has with the levels that each place of plain images usually has:

    S[j, i] = max(Σₙ log Pᵢ(xₙⱼ), Σₙ log Pᵢ(255 - xₙⱼ))

The assignment of places with the largest sum of S is the guess. The attack uses no structure of the
key. Therefore it also works if every block has a key of its own (``encryption.scope=block``), where
the attack `second_order` fails. But this attack needs more ciphertexts than `second_order`.

Letters in shapes: n images, P = C·H·W places, B bins of levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.pictures import MOST, Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.similarity import structural_similarity
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ThiefView, WorkerView

BINS, WHITE = 16, 255  # a bin and its inverse, 15 - b, have the levels q and 255 - q
UNSEEN = 0.5  # added to each count of a bin, so that no level is impossible
FEWEST_KNOWN = 100  # plain images from which the usual levels are counted
MOST_VALUES = 3072  # places; the assignment takes seconds for 32 × 32 pixels in colour
JUDGED = 200  # images of the client with which a guess is scored
VALUES, SIMILARITY = "values decrypted", "similarity to the plain image"
HALVES = ("nibble_shuffling", "block_nibble_shuffling")


@dataclass(frozen=True)
class Places:
    """A guess: where the values of ciphertexts belong.

    Attributes:
        client: The number of the client.
        place: For each place of a ciphertext, the place of the plain image, int64 (P,).
        inverted: True where the ciphertext has inverted values, bool (P,).
    """

    client: int
    place: Tensor = field(repr=False)
    inverted: Tensor = field(repr=False)

    def decrypt(self, images: Tensor) -> Tensor:
        """Returns the plain images of ciphertexts, uint8 (n, C, H, W), by this guess."""
        values = images.flatten(1)
        plain = torch.zeros_like(values)
        plain[:, self.place] = torch.where(self.inverted, WHITE - values, values)
        return plain.view_as(images)


@dataclass(frozen=True, kw_only=True)
class PositionStatistics(Attack[WorkerView | ThiefView, Places]):
    """The attack on `images` ciphertexts of a client."""

    adversaries = (WorkerView, ThiefView)
    goal = "Where each pixel of an image has gone, from the brightness at each place."
    figures = (VALUES, SIMILARITY)

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why places of this client's ciphertexts have no usual brightness."""
        public = view.public
        if view.sealed or not public.cipher.steps:
            return view.sealed or "the images are not encrypted"
        if public.settings.encryption.scope == "image":
            return "every image has its own key"
        if set(HALVES) & set(public.cipher.steps):
            return "the encryption moves halves of pixels"
        if len(public.images) < FEWEST_KNOWN:
            known = len(public.images)
            return f"it needs {FEWEST_KNOWN} plain images of the same kind, and {known} are at hand"
        values = math.prod(public.images.shape[1:])
        return "" if values <= MOST_VALUES else f"it takes images of at most {MOST_VALUES:,} values"

    def guess(self, view: WorkerView | ThiefView) -> Places:
        """Returns the assignment of places that makes the ciphertexts most likely."""
        assert view.images is not None
        usual = bin_counts(view.public.images) + UNSEEN
        likely = (usual / usual.sum(dim=1, keepdim=True)).log().T
        seen = bin_counts(view.images[: self.images])
        straight, turned = seen @ likely, seen.flip(1) @ likely
        _, place = linear_sum_assignment(torch.maximum(straight, turned).numpy(), maximize=True)
        places = torch.from_numpy(place)
        own = torch.arange(len(places))
        return Places(view.client, places, turned[own, places] > straight[own, places])

    def score(self, guess: Places, truth: Truth) -> Sequence[Figure]:
        """Returns the share of values that are decrypted, and the similarity to plain images.

        The share by chance is that of the most frequent level at each place of other images. The
        similarity by chance is that of another image.
        """
        owned = truth.owned[guess.client]
        plain = owned.plain[:JUDGED]
        found = guess.decrypt(owned.ciphertext[:JUDGED])
        usual = owned.others.mode(dim=0).values
        other = owned.others[torch.arange(len(plain)) % len(owned.others)]
        return [
            _figure(VALUES, found == plain, usual == plain),
            _figure(
                SIMILARITY,
                structural_similarity(found, plain),
                structural_similarity(other, plain),
            ),
        ]

    def pictures(self, guess: Places, truth: Truth) -> Pictures:
        """Returns the first images of the client, with their values at the guessed places."""
        owned = truth.owned[guess.client]
        return beside(owned, guess.decrypt(owned.ciphertext[:MOST]))


def bin_counts(images: Tensor) -> Tensor:
    """Counts how often each place of images has a level of each bin.

    Args:
        images: Images, uint8 (n, C, H, W).

    Returns:
        The counts, float64 (P, B).

    Example:
        >>> images = torch.tensor([0, 255, 255], dtype=torch.uint8).view(3, 1, 1, 1)
        >>> bin_counts(images)[0, [0, 1, 15]].tolist()
        [1.0, 0.0, 2.0]
    """
    bins = images.flatten(1).long() // (256 // BINS)
    counts = torch.zeros(bins.shape[1], BINS, dtype=torch.float64)
    return counts.scatter_add(1, bins.T, torch.ones(bins.T.shape, dtype=torch.float64))


def _figure(name: str, found: Tensor, chance: Tensor) -> Figure:
    value, floor = (100 * float(one.double().mean()) for one in (found, chance))
    return Figure(name=name, value=value, floor=floor, ceiling=100)
